"""The loss of Flower's SuperLink, recognised by the errors of its client."""

from __future__ import annotations

import ssl

import httpx

from psl_flower.errors import RunError


def superlink_lost(error: BaseException) -> RunError | None:
    """Return a RunError for an error of Flower's caused by the loss of its SuperLink; None for any other."""
    if not isinstance(error, httpx.TransportError):  # of the client that Flower's own is made of
        return None
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    refused = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if refused is not None:
        return RunError(
            f"the SuperLink's certificate is refused: {refused.verify_message}; make a new one "
            "(deploy/make-certificates.sh), restart the SuperLink and, since they stop at such an error, the SuperNodes"
        )
    lost = next((cause for cause in causes if isinstance(cause, ConnectionError)), None)
    return RunError(f"the SuperLink cannot be reached: {lost.strerror or lost}; see its log") if lost else None
