"""The names of files, as URIs.

file:///folder/a%20b.jpg              a file; the bytes of its name, percent-encoded
file:///folder/shard.tar#cat/1.jpg    a member of a tar or zip file, whose name is encoded in the same way
file:///folder/train.parquet#0000012  a row of a Parquet file that holds images
file:///a.jpg#box=7&xywh=10,20,30,40  a box of an image: its id in the dataset, and its place in pixels
s3://bucket/key, gs://, hdfs://       an object; a query such as ?endpoint_override=HOST belongs to the name
https://host/path?query               without what is secret in the query
"""

import math
import os
import re
from dataclasses import asdict, dataclass
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

ARCHIVES = (".tar", ".zip")
_MEMBER = re.compile(r"(.*?\.(?:tar|zip|parquet))#(.*)", re.IGNORECASE | re.DOTALL)
_BOX = re.compile(r"(.*)#box=([^#&]*)&xywh=([-+.e\d]+),([-+.e\d]+),([-+.e\d]+),([-+.e\d]+)", re.DOTALL)
_FILE = re.compile(r"file:(//(localhost)?)?/", re.IGNORECASE)
_IN_PICTURE = "&in=picture"
_WINDOWS = os.name == "nt"


@dataclass(frozen=True, slots=True)
class Box:
    """A box in an upright image.

    Attributes:
        id: What the dataset calls it: its number there, or in the annotation of the image.
        x: The left edge in pixels,
        y: the upper edge,
        width: and its size.
        height: The same.

    """

    id: str
    x: float
    y: float
    width: float
    height: float

    @property
    def is_finite(self) -> bool:
        """Whether all four numbers are finite."""
        return all(map(math.isfinite, (self.x, self.y, self.width, self.height)))

    def within(self, width: float, height: float) -> "Box":
        """The part inside of an image of this size; its width or height is 0 or less where there is none."""
        left, upper = max(self.x, 0.0), max(self.y, 0.0)
        right, lower = min(self.x + self.width, width), min(self.y + self.height, height)
        return Box(self.id, left, upper, right - left, lower - upper)

    def differs(self, other: "Box") -> bool:
        """Whether an edge is more than a pixel from that of another box."""
        ours = (self.x, self.y, self.x + self.width, self.y + self.height)
        theirs = (other.x, other.y, other.x + other.width, other.y + other.height)
        return max(abs(one - two) for one, two in zip(ours, theirs, strict=True)) > 1

    def values(self) -> dict[str, str | float]:
        """The box as a row of a table."""
        return asdict(self)


def file_uri(path: str) -> str:
    """`file:///…` for an absolute path, exact for names that are not UTF-8.

    On Windows each of the spellings of a path has the same URI: slashes of either kind, either case of the drive's
    letter or the server's name, and the prefix of long paths. A share is `file://server/share/…`.
    """
    if _WINDOWS:
        path = path.replace("\\", "/")
        if path.startswith("//?/"):
            path = path[4:] if path[4:8].upper() != "UNC/" else f"//{path[8:]}"
        if path.startswith("//"):
            server, slash, rest = path[2:].partition("/")
            return f"file://{quote(server.lower())}{slash}{quote_from_bytes(os.fsencode(rest))}"
        if path[1:2] == ":":
            return f"file:///{path[0].upper()}:{quote_from_bytes(os.fsencode(path[2:]))}"
    return "file://" + quote_from_bytes(os.fsencode(path))


def as_file_uri(text: str) -> str | None:
    """The URI of a file as `file:///…`, however it is written; None for other texts, such as a relative `file:x.jpg`.

    Example:
        >>> as_file_uri("FILE://localhost/a.jpg"), as_file_uri("file:x.jpg")
        ('file:///a.jpg', None)

    """
    found = _FILE.match(text)
    return f"file:///{text[found.end() :]}" if found else None


def local_path(uri: str) -> str:
    """The path behind a `file://` URI."""
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if _WINDOWS:
        is_share, has_drive = not path.startswith("/"), path[2:3] == ":"
        path = (f"//{path}" if is_share else path[1:] if has_drive else path).replace("/", "\\")
    return path


def box_uri(uri: str, box: Box) -> str:
    """The URI of a box of an image."""
    place = ",".join(f"{round(value, 3):.10g}" for value in (box.x, box.y, box.width, box.height))
    return f"{uri}#box={quote(box.id, safe='')}&xywh={place}"


def image_and_box(uri: str) -> tuple[str, Box | None]:
    """The URI of the image that a URI means, and the box in it, if it means one."""
    if "#box=" not in uri or (found := _BOX.fullmatch(uri)) is None:
        return uri, None
    try:
        return found[1], Box(unquote(found[2]), *map(float, found.groups()[2:]))
    except ValueError:
        return uri, None


def in_picture(uri: str) -> str | None:
    """What `decode.thumbnail` calls the picture that a box is in, with the box drawn; None where a URI means no box."""
    return uri + _IN_PICTURE if image_and_box(uri)[1] is not None else None


def shown_in_picture(uri: str) -> tuple[str, bool]:
    """A URI, and whether `in_picture` made it."""
    return uri.removesuffix(_IN_PICTURE), uri.endswith(_IN_PICTURE)


def is_remote(name: str) -> bool:
    """Whether a source, an entry of a list, or a URI is somewhere else: `s3://…`, `https://…`."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and len(scheme) > 1 and scheme.isalnum() and scheme.lower() != "file"  # `C://` is a drive


def is_file(uri: str) -> bool:
    """Whether a URI is that of a file of its own on this machine."""
    return uri.startswith("file://") and "#" not in uri


def location(uri: str) -> str:
    """What a person or another tool calls it: a path, ARCHIVE#MEMBER, IMAGE#box=ID, or the URI of a remote one."""
    if is_remote(uri):
        return uri
    image, box = image_and_box(uri)
    base, separator, member = image.partition("#")
    end = "" if box is None else f"#box={box.id}"
    return local_path(base) + separator + os.fsdecode(unquote_to_bytes(member)) + end


def exact_location(uri: str) -> str:
    """The same with the place of a box, by which it is found again: IMAGE#box=ID&xywh=X,Y,WIDTH,HEIGHT."""
    image, box = image_and_box(uri)
    return location(uri) if box is None else box_uri(location(image), box)


def archive_and_member(name: str) -> tuple[str, str] | None:
    """The two parts of ARCHIVE#MEMBER, or of FILE.parquet#ROW; None for another name."""
    found = _MEMBER.fullmatch(name)
    return (found[1], found[2]) if found else None


def is_archive(name: str) -> bool:
    """Whether the name of a file, without a query, is that of an archive of images."""
    return name.lower().endswith(ARCHIVES)
