"""What a model file is, from its bytes, and whether its zip archive is honest.

Everything here runs before torch opens the file, on the same open file, and executes nothing. An
archive that ``torch.save`` wrote has one top folder, stored (never compressed) members, plain
relative names, each once, and members that lie one after another. Anything else is refused: a
compressed member may be a bomb, two members of one name may be read differently by two readers,
and members that overlap claim more than the file holds.

Source: PKWARE APPNOTE 6.3.10 (zip), ``caffe2/serialize/inline_container.h`` (torch's layout).
"""

import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO, Literal

from export.errors import LoadError

Kind = Literal["pickle", "legacy", "safetensors", "torchscript", "exported_program"]

MAX_MEMBERS = 200_000
"""A model of 100,000 tensors is far beyond any known one; torch adds a dozen members of its own."""

MAX_CODE_BYTES = 64 * 2**20
"""TorchScript compresses its source text; this is how much of that may unpack."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_ONNX_FIELDS = b"\x12\x1a\x22\x2a\x32\x3a\x42"
_SAVE_AGAIN = "Save it again with torch.save(model, path) and use that file."


def detect_kind(file: BinaryIO, path: Path, *, member_limit: int = MAX_MEMBERS) -> Kind:
    """The form of the open model file, by its content; its name does not matter.

    Raises:
        LoadError: it is empty, truncated, no model file, or an archive that torch did not write.
    """
    file.seek(0)
    start = file.read(64)
    if not start:
        raise LoadError(f"{path} is empty. Save or copy the model again.")
    if start[:2] == b"PK":
        return _classify_members(inspect_archive(file, path, member_limit=member_limit), path)
    if start.startswith(_LEGACY_START):
        return "legacy"
    if len(start) > 8 and start[8:9] == b"{":
        return "safetensors"
    raise LoadError(_describe_unknown(file, start, path))


def inspect_archive(
    file: BinaryIO, path: Path, *, member_limit: int = MAX_MEMBERS
) -> tuple[zipfile.ZipInfo, ...]:
    """The members of the zip archive in `file`, after checking each of them.

    Raises:
        LoadError: the archive is damaged, or is not as ``torch.save`` writes it; the message names
            the member.
    """
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            members = tuple(archive.infolist())
            comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
        raise LoadError(
            f"{path} is a damaged or truncated archive: {error}. Copy or save it again."
        ) from error
    if comment:
        raise LoadError(f"{path}: the archive has a comment, which torch never writes.")
    if len(members) > member_limit:
        raise LoadError(
            f"{path} has {len(members):,} members; at most {member_limit:,} are read. {_SAVE_AGAIN}"
        )
    _check_names(members, path)
    for member in members:
        _check_storage(member, path)
    _check_layout(file, size, members, path)
    return members


def read_pickle(file: BinaryIO, path: Path) -> bytes:
    """The bytes of ``data.pkl`` of an archive that `inspect_archive` has passed."""
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.partition("/")[2] == "data.pkl")
        try:
            return archive.read(name)
        except zipfile.BadZipFile as error:
            raise LoadError(f"{path}: {name!r} is damaged: {error}. Copy it again.") from error


def _classify_members(members: tuple[zipfile.ZipInfo, ...], path: Path) -> Kind:
    roots = {member.filename.partition("/")[0] for member in members}
    inner = {member.filename.partition("/")[2] for member in members}
    if "serialized_exported_program.json" in roots:
        raise LoadError(
            f"{path} is an exported program in the form of torch 2.7 or older. Load it there and "
            "save it with torch.export.save of a current torch."
        )
    if len(roots) != 1:
        raise LoadError(f"{path} is a zip archive, but not a model saved by torch. {_SAVE_AGAIN}")
    if any(name.startswith("data/aotinductor/") for name in inner):
        raise LoadError(
            f"{path} holds compiled native code (AOTInductor), not a graph. Save the program "
            "itself with torch.export.save."
        )
    if any(name.startswith("models/") or name == "archive_format" for name in inner):
        return "exported_program"
    if "constants.pkl" in inner:
        return "torchscript"
    compressed = [member.filename for member in members if member.compress_type]
    if compressed:
        raise LoadError(
            f"{path}: member {compressed[0]!r} is compressed. torch stores members uncompressed, "
            f"and a compressed one may unpack to any size. {_SAVE_AGAIN}"
        )
    if "data.pkl" in inner:
        return "pickle"
    raise LoadError(f"{path} is a zip archive, but not a model saved by torch. {_SAVE_AGAIN}")


def _check_names(members: tuple[zipfile.ZipInfo, ...], path: Path) -> None:
    seen: set[str] = set()
    for member in members:
        # orig_filename: zipfile cuts `filename` at a NUL byte, other readers do not
        name = member.orig_filename
        unsafe = "\\" in name or ":" in name or any(ord(character) < 32 for character in name)
        if unsafe or any(part in ("", ".", "..") for part in name.split("/")):
            raise LoadError(
                f"{path}: member {name!r} leaves the archive or is no plain relative name. "
                "The file was not written by torch; do not use it."
            )
        # torch's zip reader ignores case
        if name.casefold() in seen:
            raise LoadError(
                f"{path}: member {name!r} is there twice (a duplicate name), so two readers may "
                "see two models. The file was not written by torch; do not use it."
            )
        seen.add(name.casefold())


def _check_storage(member: zipfile.ZipInfo, path: Path) -> None:
    """Neither a link nor encrypted; stored, or deflated source text of TorchScript."""
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a plain file"
        raise LoadError(
            f"{path}: member {member.filename!r} is {kind}. "
            "The file was not written by torch; do not use it."
        )
    if member.flag_bits & 0x1:
        raise LoadError(f"{path}: member {member.filename!r} is encrypted. {_SAVE_AGAIN}")
    if member.compress_type == zipfile.ZIP_STORED:
        if member.compress_size != member.file_size:
            raise LoadError(
                f"{path}: member {member.filename!r} says it holds {member.file_size:,} bytes and "
                f"has {member.compress_size:,}: its sizes lie. {_SAVE_AGAIN}"
            )
        return
    is_code = member.filename.partition("/")[2].startswith("code/")
    if not is_code or member.compress_type != zipfile.ZIP_DEFLATED:
        raise LoadError(
            f"{path}: member {member.filename!r} is compressed. torch stores members uncompressed, "
            f"and a compressed one may unpack to any size. {_SAVE_AGAIN}"
        )


def _check_layout(
    file: BinaryIO, size: int, members: tuple[zipfile.ZipInfo, ...], path: Path
) -> None:
    """Every member lies inside the file, behind the one before it, under its own name."""
    code = sum(member.file_size for member in members if member.compress_type)
    if code > MAX_CODE_BYTES:
        raise LoadError(f"{path}: its compressed members unpack to {code:,} bytes; that is a bomb.")
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        file.seek(member.header_offset)
        raw = file.read(_LOCAL_HEADER.size)
        if len(raw) < _LOCAL_HEADER.size or not raw.startswith(b"PK\x03\x04"):
            raise LoadError(f"{path}: member {member.filename!r} is not where the archive says.")
        header = _LOCAL_HEADER.unpack(raw)
        name_length, extra_length = header[-2:]
        name = file.read(name_length)
        start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if member.header_offset < end or start + member.compress_size > size:
            raise LoadError(
                f"{path}: member {member.filename!r} overlaps another one or ends past the file: "
                f"its sizes lie, or the file is truncated. {_SAVE_AGAIN}"
            )
        if name != member.orig_filename.encode() or header[3] != member.compress_type:
            raise LoadError(
                f"{path}: member {member.filename!r} has another name or form in its own header. "
                "The file was not written by torch; do not use it."
            )
        end = start + member.compress_size


def _describe_unknown(file: BinaryIO, start: bytes, path: Path) -> str:
    if start[0] == 0x08 and start[1] < 32 and start[2:3] in {bytes([b]) for b in _ONNX_FIELDS}:
        return (
            f"{path} looks like an ONNX model, which is exported already. Give the PyTorch model "
            "it was made from."
        )
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the model. Fetch it with: git lfs pull"
    file.seek(0)
    try:
        is_tar = tarfile.is_tarfile(file)
    except (OSError, ValueError, OverflowError):
        is_tar = False
    if is_tar:
        return (
            f"{path} is a tar archive, the form of torch before 0.2; its links can reach other "
            f"files, so it is not read. {_SAVE_AGAIN}"
        )
    if start[:1] == b"\x80":
        return (
            f"{path} is a Python pickle that torch.save did not write (or it is truncated). "
            f"{_SAVE_AGAIN}"
        )
    return (
        f"{path} is not a model file: its content is no torch.save archive, safetensors, "
        "TorchScript or exported program. Check the path, or copy the file again if it was cut off."
    )
