"""A file behind HTTP, read by ranges: of a wheel of 900 MB, only the libraries that matter come over the network."""

from __future__ import annotations

import io

import requests

from envbuilder.errors import FetchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TIMEOUT_S = (10, 60)
_ATTEMPTS = 4


class RemoteFile(io.RawIOBase):
    """A read-only, seekable file at an address. Wrap it in io.BufferedReader: each read here is one request.

    Raises FetchError: the server is not reached, answers an error, or does not serve ranges.
    """

    def __init__(self, url: str, session: requests.Session, *, name: str) -> None:
        super().__init__()
        self._url, self._session, self._name = url, session, name
        self._at = 0
        self.transferred = 0
        self.size = self._measure()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self.size - self._at)
        if length <= 0:
            return 0
        data = self._range(self._at, length)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _measure(self) -> int:
        response = self._ask({"Range": "bytes=0-0"})
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code != requests.codes.partial_content or not total.isdigit():
            raise FetchError(f"{self._name} cannot be read in parts", why=f"The server answered {response.status_code} to a range request.")
        return int(total)

    def _range(self, start: int, length: int) -> bytes:
        """Fetch a range, going on where an answer broke off."""
        data = b""
        for _ in range(_ATTEMPTS):
            try:
                response = self._ask({"Range": f"bytes={start + len(data)}-{start + length - 1}"})
                data += response.content
            except requests.RequestException:
                continue
            self.transferred += len(data)
            if len(data) >= length:
                return data[:length]
        raise FetchError(
            f"{self._name} came in pieces only", why=f"{len(data)} of {length} bytes at {start}.", next="Run it again: it goes on."
        )

    def _ask(self, headers: dict[str, str]) -> requests.Response:
        try:
            response = self._session.get(self._url, headers={**headers, "Accept-Encoding": "identity"}, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise FetchError(
                f"{self._name} cannot be fetched", why=str(error), next="Check the network, then run it again: it goes on."
            ) from error
        if response.status_code >= 400:
            raise FetchError(f"{self._name} cannot be fetched", why=f"The server answered {response.status_code}.")
        return response
