"""Files of tables in a folder: which of them list images, and their rows."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from csv import Error as CsvError
from csv import reader
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet
from pyarrow import json as lines

from psl_flower.data.columns import Columns, ImageKind, Resolve, image_kinds
from psl_flower.data.expansion import check_expansion
from psl_flower.data.files import is_image_name
from psl_flower.data.imageless_tables import near_miss
from psl_flower.data.options import leave_out_setting
from psl_flower.data.pixel_columns import join_pixels, pixel_names
from psl_flower.data.shards import check_copies, check_places, check_shards, joined_files, shard_of
from psl_flower.data.splits import split_word
from psl_flower.data.table import Table
from psl_flower.errors import DataError
from psl_flower.text import printable

# They hold the images themselves, so that the `datasets` library keeps them on disk.
LARGE_ENDINGS = frozenset({".arrow", ".parquet"})
_PEEKED_ROWS = 100
_PEEKED_BYTES = 1 << 20
# Of one JSON document, which is parsed whole.
_MOST_JSON_BYTES = 256 << 20
_TEXTS = (".csv", ".tsv")
_LFS = b"version https://git-lfs"
_CAUSE = 160
_TOLD = 3
_DELIMITERS = ",;\t|"
_NUMBER = r"\s*-?\d+(\.\d*)?\s*"


class ImageTables:
    """The files of a folder that list images.

    `paths` are its files of tables; `resolve` finds the file that a text names. `patterns`, those of leave-out, may
    name parts of a table that are missing.

    Attributes
    ----------
    paths : list[str]
        Those that list images.
    others : dict[str, str]
        The other ones, and why.
    notes : list[str]
        What `by_split` has for the account.
    """

    def __init__(self, root: Path, paths: Iterable[str], resolve: Resolve, patterns: Sequence[str]) -> None:
        self._root, self._resolve, self._patterns = root, resolve, patterns
        self.paths: list[str] = []
        self.others: dict[str, str] = {}
        self.notes: list[str] = []
        # Tables that hold the images themselves, so that no path identifies the images.
        self._holders: set[str] = set()
        self._damaged: list[str] = []
        for path in paths:
            try:
                sample = _peek(root / path)
                if sample is not None and path.lower().endswith(_TEXTS):
                    _check_header(sample, self._from(path))
            except (DataError, OSError, ValueError, pa.ArrowException) as error:
                self.others[path] = str(error) if isinstance(error, DataError) else _cause(error)
                self._damaged.append(path)
                continue
            kinds = image_kinds(Columns.of(sample.schema), sample, self._from(path)) if sample is not None else {}
            if sample is not None and kinds:
                self.paths.append(path)
                if ImageKind.PATH not in kinds.values():
                    self._holders.add(path)
            else:
                columns = Columns.of(sample.schema).shown() if sample is not None else ""
                said = f"no column holds images; the columns are {columns}"
                self.others[path] = said if columns else "holds no table with a row for each image"

    def unread(self, pictures: Collection[str]) -> str:
        """Return the fault of the first of the other tables, and the row of them that nearly names an image."""
        said = []
        for path, why in list(self.others.items())[:_TOLD]:
            sample = _peek(self._root / path) if path not in self._damaged else None
            near = near_miss(sample, self._from(path), pictures) if sample is not None else ""
            said.append(f"{printable(path)}: {why}{'; ' * bool(near)}{near}")
        return "; ".join(said)

    def check(self, name: str, *, large_only: bool = False) -> None:
        """Check that each table can be read; with `large_only` those that hold the images themselves.

        Raises
        ------
        DataError
            If one cannot: the images in it, or those that it lists, would be left out.
        """
        for path in self._damaged:
            if not large_only or Path(path).suffix.lower() in LARGE_ENDINGS:
                raise DataError(
                    f"{name}: {printable(path)} {self.others[path]}; what it holds would be left out: mend it, or "
                    f"leave it out with {leave_out_setting(path)}"
                )

    def by_split(self, name: str) -> dict[str, list[str]]:
        """Return the files of each split; those without one in their names are all there is, or are left out.

        Raises
        ------
        DataError
            If files of several kinds list images, one that holds images belongs to no split while others do, images
            would be taken twice, or a part of a table is missing.
        """
        endings = {Path(path).suffix.lower(): path for path in self.paths}
        if len({ending in LARGE_ENDINGS for ending in endings}) > 1 or len(endings) > 1:
            several = ", ".join(sorted(endings.values()))
            raise DataError(f"{name}: several kinds of tables list images ({several}); leave one out with leave-out")
        check_shards(name, self.paths, self.others, self._patterns)
        check_copies(name, self._root, [path for path in self.paths if path in self._holders])
        found: dict[str, list[str]] = {}
        for path in self.paths:
            found.setdefault(_split_of(path)[0], []).append(path)
        for split, paths in found.items():
            check_places(name, split or "train", {path: _split_of(path)[1] for path in paths if path in self._holders})
            self.notes += filter(None, [joined_files(split or "train", paths)])
        alone = found.pop("", [])
        if not found:
            return {"train": alone}
        if alone:
            raise DataError(
                f"{name}: {alone[0]} lists images and tells no split by its name, unlike "
                f"{next(iter(found.values()))[0]}; rename it, or leave it out with {leave_out_setting(alone[0])}"
            )
        return found

    def read(self, name: str, paths: Iterable[str]) -> Table:
        """Return the rows of files one after another.

        Raises
        ------
        DataError
            If one cannot be read, or they do not fit each other.
        """
        parts: list[pa.Table] = []
        files: dict[str, int] = {}
        for path in paths:
            try:
                parts.append(self._with_places(path, _read(self._root / path)))
                files[path] = len(parts[-1])
                whole = pa.concat_tables(parts, promote_options="default")
            except DataError as error:
                raise DataError(f"{name}: {printable(path)} {error}") from error
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(f"{name}: {path} cannot be read as a table: {error}") from error
        return Table.of(whole, files)

    def _from(self, path: str) -> Resolve:
        """Return a callable that finds the images of a table at this place."""
        resolve, here = self._resolve, path.rpartition("/")[0]
        return lambda text, beside=here: resolve(text, beside)

    def _with_places(self, path: str, table: pa.Table | None) -> pa.Table:
        """Return a table whose image paths are absolute; they may be relative to the table."""
        if table is None:
            raise ValueError("it is too large")
        resolve = self._from(path)
        kinds = image_kinds(Columns.of(table.schema), table.slice(0, _PEEKED_ROWS), resolve)
        for column in [name for name, kind in kinds.items() if kind is ImageKind.PATH]:
            texts = table.column(column).to_pylist()
            places = [str(resolve(text) or text) if text else text for text in texts]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(places, pa.string()))
        return table


def _split_of(path: str) -> tuple[str, str]:
    """Return the split in a file's name or its folders' names, empty if they name no split, and its place."""
    shard = shard_of(path)
    place, _, stem = (shard.whole if shard else posixpath.splitext(path)[0]).rpartition("/")
    outer, text = place, stem
    while not (word := split_word(text)[0]) and outer:
        outer, _, text = outer.rpartition("/")
    return (word, outer) if word else (stem if shard else "", place)


def _cause(error: Exception) -> str:
    """Return why a file is no table, after its name."""
    kind = type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"cannot be read as a table ({kind}); save it as UTF-8"
    said = str(error).strip().split("\n")[0][:_CAUSE].rstrip(".")
    return f"cannot be read as a table ({kind}){': ' * bool(said)}{said}"


def _check_header(sample: pa.Table, resolve: Resolve) -> None:
    """Refuse a csv file without names of columns: its first row would be lost, and an image with it."""
    for name in sample.column_names:
        if resolve(name) is None:
            continue
        # A column may be called as an image is but for its ending, such as "image" and image.png.
        others = [other for other in sample.column_names if other != name]
        repeated = any(other in map(str, sample.column(other).to_pylist()) for other in others)
        if is_image_name(name) or repeated:
            raise DataError(
                f"has the image {printable(name)} in its first row, where the columns' names should stand; put a row "
                "such as file,label above it"
            )


def _peek(path: Path) -> pa.Table | None:
    """Return the first rows of a table; None if a file holds no table."""
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise DataError("is a git-lfs pointer, not the file that it stands for; fetch that with git lfs pull")
    if not start:
        raise DataError("is empty, of 0 bytes")
    if path.suffix.lower() == ".parquet":
        check_expansion(path)
        # Read in small pieces: by default the first rows cost a reading of their whole row group.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_PEEKED_BYTES) as file:
            batch = next(file.iter_batches(batch_size=_PEEKED_ROWS), None)
            return pa.Table.from_batches([batch] if batch is not None else [], file.schema_arrow)
    if path.suffix.lower() == ".arrow":
        with open_arrow(path) as reader:
            return pa.Table.from_batches([next(iter(reader))], reader.schema).slice(0, _PEEKED_ROWS)
    if path.suffix.lower() == ".json":
        return _read(path)
    with path.open("rb") as file:
        text = file.read(_PEEKED_BYTES)
    if len(text) == _PEEKED_BYTES:
        text = text[: max(text.rfind(b"\n"), text.rfind(b"\r")) + 1]
    return _parse(path, text)


def _read(path: Path) -> pa.Table | None:
    if path.stat().st_size > _MOST_JSON_BYTES and path.suffix.lower() == ".json":
        return None
    return _parse(path, path.read_bytes())


def open_arrow(path: Path) -> pa.RecordBatchReader:
    """Open an arrow file, of either of its two formats; raises ArrowInvalid or OSError."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return pa.RecordBatchReader.from_batches(
            file.schema, (file.get_batch(k) for k in range(file.num_record_batches))
        )


def _parse(path: Path, content: bytes) -> pa.Table | None:
    content.decode("utf-8")  # another encoding would give other names, or an error of the parser's
    content = content.removeprefix(b"\xef\xbb\xbf")
    ending = path.suffix.lower()
    if ending == ".json":
        try:
            document = json.loads(content)
        except ValueError:
            return lines.read_json(BytesIO(content))
        if isinstance(document, list) and document and all(isinstance(row, dict) for row in document):
            # Not only those of the first row.
            names = dict.fromkeys(name for row in document for name in row)
            return pa.table({name: [row.get(name) for row in document] for name in names})
        return None
    if ending == ".jsonl":
        return lines.read_json(BytesIO(content))
    return _parse_csv(content, "\t" if ending == ".tsv" else "")


def _parse_csv(content: bytes, delimiter: str) -> pa.Table:
    """Return a table whose columns hold texts, verbatim, or whole numbers: 007 is a text, except as a pixel."""
    header = re.split(rb"\r\n?|\n", content, maxsplit=1)[0].decode()
    delimiter = delimiter or max(_DELIMITERS, key=header.count)
    try:
        names = next(iter(reader([header], delimiter=delimiter)), [])
    except CsvError as error:
        raise ValueError(f"its first row: {error}") from error
    if len(names) > 1 and all(re.fullmatch(_NUMBER, name) for name in names):
        raise DataError(
            "has numbers in its first row, not names of columns; put those above, such as label,pixel0,pixel1"
        )
    if len(set(names)) < len(names):
        raise ValueError("two of its columns have one name")
    pixels = set(pixel_names(names))
    written = [name for name in names if name not in pixels]
    table = csv.read_csv(
        BytesIO(content),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(written, pa.string())),
    )
    for name in written:
        texts = table.column(name)
        try:
            numbers = texts.cast(pa.int64())
        except pa.ArrowInvalid:
            continue
        if numbers.cast(pa.string()).equals(texts):
            table = table.set_column(table.schema.get_field_index(name), name, numbers)
    return join_pixels(table)
