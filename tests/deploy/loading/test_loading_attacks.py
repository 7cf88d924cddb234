"""Hostile model files: each is a real file, refused before anything of it runs or unpacks."""

import contextlib
import io
import os
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.loading.archive import detect_kind
from deploy.loading.model_files import load_model
from export.errors import LoadError, TrustError

Edit = Callable[[str, bytes], bytes]


class Call:
    """Pickles as a call of `function` on `args`."""

    def __init__(self, function: object, *args: object) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def rewrite(path: Path, edit: Edit, *, compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again with every member passed through `edit`."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, edit(name, data))


def refused(path: Path, *words: str, kind: type[LoadError] = LoadError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def touch(sentinel: Path) -> Call:
    return Call(os.system, f"touch {sentinel}")


def test_reduce_that_runs_a_command_runs_nothing(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    path = save({"state_dict": make_net().state_dict(), "x": touch(sentinel)}, tmp_path / "m.pt")
    refused(path, "posix.system", "--trust-all", kind=TrustError)
    refused(path, "posix.system", "--trust-all", kind=TrustError, trust=("posix", "os"))
    assert not sentinel.exists()


def test_eval_of_builtins_is_not_opened_by_trust(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    path = save(Call(eval, f"open({str(sentinel)!r}, 'w')"), tmp_path / "m.pt")
    refused(path, "builtins.eval", "--trust-all", kind=TrustError, trust=("builtins",))
    assert not sentinel.exists()


def test_functions_of_torch_are_not_trusted_because_torch_owns_them(tmp_path: Path) -> None:
    from torch.utils import collect_env

    sentinel = tmp_path / "ran"
    path = save(Call(collect_env.run, f"touch {sentinel}"), tmp_path / "m.pt")
    for trust in ((), ("torch.utils.collect_env",), ("torch",)):
        text = refused(path, "torch.utils.collect_env.run", kind=TrustError, trust=trust)
        assert "only --trust-all runs it" in text
        assert "--trust torch" not in text
    assert not sentinel.exists()


def test_function_of_torch_nn_is_no_module_class(tmp_path: Path) -> None:
    path = save(Call(nn.init.ones_, torch.zeros(2)), tmp_path / "m.pt")
    refused(path, "torch.nn.init.ones_", kind=TrustError)


def test_trusted_package_does_not_lend_its_trust_to_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = tmp_path / "ran"
    (tmp_path / "lender.py").write_text("import os\nfrom os import system\n")
    monkeypatch.syspath_prepend(tmp_path)
    for index, name in enumerate((b"clender\nsystem\n", b"clender\nos.system\n")):
        path = save(touch(sentinel), tmp_path / f"m{index}.pt")
        rewrite(path, lambda _, data, name=name: data.replace(b"cposix\nsystem\n", name))
        refused(path, "posix.system", kind=TrustError, trust=("lender",))
    assert not sentinel.exists()


def test_names_with_shell_text_never_reach_the_suggested_command(tmp_path: Path) -> None:
    path = save(touch(tmp_path / "ran"), tmp_path / "m.pt")
    rewrite(path, lambda _, data: data.replace(b"cposix\nsystem\n", b"c$(reboot)\nx;y\n"))
    assert "--trust $" not in refused(path, "is no class")


def test_nothing_stays_in_the_list_of_safe_globals(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([nn.Linear]):
        before = set(torch.serialization.get_safe_globals())
        load_model(save(make_net(), tmp_path / "m.pt"))
        assert set(torch.serialization.get_safe_globals()) == before


class TestExportedProgram:
    @pytest.fixture
    def program(self, tmp_path: Path) -> Path:
        path = tmp_path / "m.pt2"
        exported = torch.export.export(make_net(), (torch.ones(1, 3),))
        torch.export.save(exported, path)
        return path

    def test_evil_sample_inputs_do_not_run_even_with_trust_all(
        self, program: Path, tmp_path: Path
    ) -> None:
        sentinel = tmp_path / "ran"
        buffer = io.BytesIO()
        torch.save(((touch(sentinel),), {}), buffer)
        evil = buffer.getvalue()
        rewrite(program, lambda n, d: evil if n.endswith("data/sample_inputs/model.pt") else d)
        refused(program, "cannot be read", trust=("*",))
        assert not sentinel.exists()

    def test_clean_program_loads_and_the_environment_is_put_back(self, program: Path) -> None:
        before = dict(os.environ)
        loaded = load_model(program, trust=("*",))
        assert dict(os.environ) == before
        x = torch.ones(2, 3)[:1]
        torch.testing.assert_close(loaded.module(x), make_net()(x))

    def test_is_code_and_needs_trust_all(self, program: Path) -> None:
        refused(program, "exported program", "code", 'trust=("*",)', kind=TrustError)
        refused(program, 'trust=("*",)', kind=TrustError, trust=("torch",))


class TestTensors:
    @pytest.mark.parametrize("whole", [True, False])
    def test_stride_zero_tensor_is_refused_before_it_is_materialised(
        self, tmp_path: Path, whole: bool
    ) -> None:
        net = nn.Linear(2, 2)
        huge = torch.zeros(1).as_strided((2**20, 2**20), (0, 0))
        net.weight = nn.Parameter(huge, requires_grad=False)
        path = save(net if whole else net.state_dict(), tmp_path / "m.pt")
        assert path.stat().st_size < 5000
        refused(path, "weight", "1,099,511,627,776 elements", "stores 1")

    def test_stride_zero_tensor_as_a_plain_attribute_is_refused(self, tmp_path: Path) -> None:
        net = nn.Linear(2, 2)
        net.cache = {"deep": [torch.zeros(1).as_strided((2**40,), (0,))]}  # type: ignore[assignment]
        refused(save(net, tmp_path / "m.pt"), "cache.deep.0", "elements")

    def test_constructor_in_the_pickle_allocates_nothing(self, tmp_path: Path) -> None:
        path = save(Call(nn.Linear, 2**20, 2**20), tmp_path / "m.pt")
        refused(path, "meta")

    def test_meta_tensor_is_refused(self, tmp_path: Path) -> None:
        refused(save(nn.Linear(2, 2, device="meta"), tmp_path / "m.pt"), "weight", "meta device")

    def test_record_that_is_smaller_than_its_tensor_is_refused(self, tmp_path: Path) -> None:
        path = save(make_net().state_dict(), tmp_path / "m.pt")
        rewrite(path, lambda n, d: d[:4] if n.endswith("data/0") else d)
        refused(path, "cannot be read", "size")

    def test_sparse_tensor_with_false_indices_is_refused(self, tmp_path: Path) -> None:
        path = save({"w": make_csr(10**9)}, tmp_path / "m.pt")
        refused(path, "sparse", "to_dense")
        refused(path, "cannot be read", "col_indices", trust=("*",))

    def test_valid_sparse_tensor_cannot_be_exported_and_is_refused(self, tmp_path: Path) -> None:
        for index, tensor in enumerate((torch.eye(3).to_sparse(), make_csr(2))):
            path = save({"w": tensor}, tmp_path / f"{index}.pt")
            refused(path, "sparse", "to_dense")
            refused(path, "w is sparse", trust=("*",))


def make_csr(last_column: int) -> torch.Tensor:
    rows, columns = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, last_column])
    with warnings.catch_warnings():  # "support is in beta state"
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(rows, columns, torch.ones(3), (3, 3), check_invariants=False)


class TestArchive:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return save(make_net().state_dict(), tmp_path / "m.pt")

    def test_deflated_bomb_is_refused_unopened(self, path: Path) -> None:
        rewrite(
            path,
            lambda n, d: bytes(2**26) if n.endswith("data/0") else d,
            compression=zipfile.ZIP_DEFLATED,
        )
        assert path.stat().st_size < 2**18
        refused(path, "is compressed")

    def test_member_size_that_lies_is_refused(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        entry = raw.rindex(b"PK\x01\x02")
        raw[entry + 24 : entry + 28] = (2**30).to_bytes(4, "little")
        path.write_bytes(raw)
        refused(path, "its sizes lie")

    def test_member_that_claims_the_bytes_of_others_is_refused(self, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        entry = raw.index(b"PK\x01\x02")
        for field in (20, 24):
            raw[entry + field : entry + field + 4] = (3000).to_bytes(4, "little")
        path.write_bytes(raw)
        refused(path, "overlaps")

    def test_number_of_members_is_limited(self, path: Path) -> None:
        with path.open("rb") as file, pytest.raises(LoadError, match="at most 3"):
            detect_kind(file, path, member_limit=3)

    @pytest.mark.parametrize(
        "name", ["m/../../evil", "/etc/evil", "m\\..\\evil", "m/data/\x1bx", "C:/evil", "m//evil"]
    )
    def test_zip_slip_is_refused(self, path: Path, name: str) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"evil")
        refused(path, "no plain relative name")

    def test_symbolic_link_is_refused(self, path: Path) -> None:
        entry = zipfile.ZipInfo("m/data/9")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(entry, "/etc/passwd")
        refused(path, "m/data/9", "symbolic link")

    @pytest.mark.parametrize("name", ["m/data.pkl", "m/DATA.pkl"])
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_duplicate_name_is_refused(self, path: Path, name: str) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"other")
        refused(path, "duplicate name")

    def test_other_name_in_the_members_own_header_is_refused(self, path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"m/data.pkl", b"m/evil.pkl", 1))
        refused(path, "own header")

    def test_archive_behind_other_bytes_is_refused(self, path: Path) -> None:
        path.write_bytes(b"PK\x03\x04" + path.read_bytes())
        refused(path)

    def test_tar_with_a_hard_link_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "m.pt"
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("storages")
            link.type, link.linkname = tarfile.LNKTYPE, "/etc/passwd"
            archive.addfile(link)
        refused(path, "tar archive", "links")
        refused(path, "tar archive", trust=("*",))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_never_escape_the_error_tree(tmp_path: Path, seed: int) -> None:
    path = save(make_net(), tmp_path / "m.pt")
    raw = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for position in torch.randint(0, len(raw), (8,), generator=generator).tolist():
        raw[position] ^= 1 + seed
    path.write_bytes(raw)
    with contextlib.suppress(LoadError):
        load_model(path)
