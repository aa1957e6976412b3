"""Tar files, as WebDataset has them."""

import tarfile
from typing import BinaryIO

SUFFIX = ".tar"


class TarIndex:
    """The members of a tar file by name; see `archives.Index`."""

    kind = "tar file"

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.sizes: dict[str, int] = {}
        self.others = 0
        self.damage: str | None = None
        self._offsets: dict[str, int] = {}
        damage = None
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                    end = tar.offset
                    if member.isreg() and not member.issparse():  # of two with one name the last counts
                        self.sizes[member.name], self._offsets[member.name] = member.size, member.offset_data
                    elif not member.isdir():
                        self.others += 1
                # A header that makes no sense ends the file for `tarfile`, as its proper end, zeros, does.
                file.seek(tar.offset)
                block = file.read(tarfile.BLOCKSIZE)
                if block.strip(b"\0"):
                    damage = "no header of a member where one should be"
        except tarfile.TarError as error:
            damage = str(error)
        if damage is None and end > size:
            damage = "it ends within a member"
        if damage is not None:
            self.damage = f"damaged tar file: {damage}, after {len(self.sizes)} readable members"

    def read(self, file: BinaryIO, name: str) -> bytes:
        """The bytes of a member."""
        file.seek(self._offsets[name])
        return file.read(self.sizes[name])
