"""Zip files. Nothing is unpacked to disk, so it does not matter where the names of members point."""

import copy
import stat
import zipfile
from typing import IO, BinaryIO

from ood_audit.images.content import UnreadableError
from ood_audit.text import printable

SUFFIX = ".zip"
_BOMB_BYTES, _BOMB_RATIO = 1 << 28, 20  # a larger member that is packed tighter is no picture
_STEP = 4096  # packed bytes read at a time, where the method of packing can't be told to stop
_ENCRYPTED = 0x1


class ZipIndex:
    """The members of a zip file by name; see `archives.Index`."""

    kind = "zip file"

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.sizes: dict[str, int] = {}
        self.others = 0
        self.damage: str | None = None
        try:
            self._archive = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises more than BadZipFile on hostile bytes
            reason = "empty file" if size == 0 else printable(str(error)) or type(error).__name__
            self.damage = f"damaged zip file: {reason[0].lower()}{reason[1:]}"
            return
        infos = self._archive.infolist()
        # Some programs of Windows write its separator, against the standard of zip files.
        is_windows = not any("/" in info.filename for info in infos)
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)
            name = info.filename.replace("\\", "/") if is_windows else info.filename
            if name.endswith("/"):
                continue
            if kind not in (0, stat.S_IFREG):
                self.others += 1
            else:
                self.sizes[name], self._infos[name] = info.file_size, info

    def read(self, file: BinaryIO, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            UnreadableError: The member is encrypted, damaged, or a bomb.

        """
        info = self._infos[name]
        if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * info.compress_size:
            raise UnreadableError(f"decompression bomb: {info.compress_size:,} bytes become {info.file_size:,}")
        with self.member(file, name) as member:
            try:
                return _all_of(member, info)
            except OSError:
                raise
            except Exception as error:  # BadZipFile, zlib.error, EOFError, struct.error, …
                raise _damaged(error) from error

    def member(self, file: BinaryIO, name: str) -> IO[bytes]:
        """A member for reading.

        Raises:
            UnreadableError: The member is encrypted, or packed by an unknown method.

        """
        info = self._infos[name]
        if info.flag_bits & _ENCRYPTED:
            raise UnreadableError("encrypted in the zip file; unpack it with the password, and embed the folder")
        # The table of contents is read once. Each thread has a file of its own to read from.
        archive = copy.copy(self._archive)
        archive.fp = file
        try:
            return archive.open(info)
        except NotImplementedError as error:
            raise UnreadableError(
                "packed by a method that cannot be unpacked here; unpack the zip file with another program, and embed "
                "the folder"
            ) from error
        except OSError:
            raise
        except Exception as error:  # BadZipFile, …
            raise _damaged(error) from error


def _damaged(error: Exception) -> UnreadableError:
    return UnreadableError(f"damaged in the zip file: {printable(str(error) or type(error).__name__)}")


def _all_of(member: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """As many bytes as are announced, and no more; the checksum is compared on the way."""
    if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = member.read(info.file_size + 1)
    else:
        data = b"".join(iter(lambda: member.read(_STEP), b""))
    if len(data) != info.file_size:
        raise zipfile.BadZipFile("it ends within the member")
    return data
