"""Where tests find the repository and real datasets."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Folders of parquet files by dataset; tests that want one which is not there are skipped or take the digits.
DATA = Path(os.environ.get("PSL_DATA") or ROOT.parent / "shared" / "data")
