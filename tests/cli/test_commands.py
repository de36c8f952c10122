import json
import subprocess
import sys

import numpy as np
import pytest

import limpet
from limpet import Checkpointer

STATE = {"model": {"layer.1": np.arange(40_000, dtype=np.float32).reshape(200, 200)}, "epoch": 3, "name": "ada"}


@pytest.fixture
def run(tmp_path):
    url = tmp_path / "run"
    with Checkpointer(url, owner="tester") as cp:
        for step in (10, 20):
            cp.write(STATE | {"epoch": step}, step=step, meta={"loss": 1 / step}, durable=True)
    return url


def damage(url):
    pack = max(url.glob("data/**/*.pack"), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[100] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)


def test_ls_lists_checkpoints_newest_first(limpet_command, run):
    ended = limpet_command("ls", run, "--json")
    assert ended.code == 0
    assert [info["step"] for info in ended.document] == [20, 10]
    assert ended.document[0]["owner"] == "tester"
    assert ended.document[0]["meta"] == {"loss": 0.05}
    assert ended.document[0]["raw_bytes"] >= 160_000


def test_ls_prints_one_line_a_checkpoint_without_a_terminal(limpet_command, run):
    lines = limpet_command("ls", run).out.splitlines()
    assert lines[0].split() == ["seq", "step", "time", "age", "raw", "stored", "new", "pinned", "owner"]
    assert len(lines) == 3
    assert lines[1].split()[1] == "20"
    assert "tester" in lines[1]


def test_ls_of_a_place_without_a_run_lists_nothing_or_says_so_and_creates_nothing(limpet_command, tmp_path):
    ended = limpet_command("ls", tmp_path / "nothing")
    assert "nothing" in ended.out + ended.err
    assert not (tmp_path / "nothing").exists()


def test_show_names_every_leaf_with_dtype_shape_and_size(limpet_command, run):
    document = limpet_command("show", run, "10", "--json").document
    assert document["step"] == 10
    leaves = {leaf["path"]: leaf for leaf in document["leaves"]}
    weights = leaves['model."layer.1"']
    assert (weights["dtype"], weights["shape"], weights["bytes"]) == ("float32", [200, 200], 160_000)
    assert {"epoch", "name"} < set(leaves)


def test_show_of_the_newest_is_a_table(limpet_command, run):
    out = limpet_command("show", run).out
    assert out.startswith("step 20 (seq ")
    assert "200 x 200" in out


def test_a_checkpoint_can_be_named_by_its_seq(limpet_command, run):
    seq = limpet_command("ls", run, "--json").document[-1]["seq"]
    assert limpet_command("show", run, f"seq:{seq}", "--json").document["step"] == 10


def test_a_step_that_is_not_there_is_one_line_that_lists_those_that_are(limpet_command, run):
    ended = limpet_command("show", run, "15")
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err == "error: There is no checkpoint 15. This run holds: 20, 10.\n"


def test_a_step_that_is_no_number_is_a_wrong_call(limpet_command, run):
    ended = limpet_command("show", run, "newest")
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_verify_of_a_sound_run_checks_every_checkpoint(limpet_command, run):
    ended = limpet_command("verify", run, "--json")
    assert ended.code == 0
    assert ended.document["ok"] is True
    assert [report["step"] for report in ended.document["checkpoints"]] == [20, 10]
    assert all(report["bytes"] > 0 for report in ended.document["checkpoints"])


def test_verify_of_a_damaged_run_exits_1_with_the_report(limpet_command, run):
    damage(run)
    ended = limpet_command("verify", run)
    assert ended.code == 1
    assert "DAMAGED" in ended.out
    assert "Traceback" not in ended.err


def test_verify_of_a_damaged_run_says_which_in_json(limpet_command, run):
    damage(run)
    ended = limpet_command("verify", run, "--json")
    assert ended.code == 1
    assert ended.document["ok"] is False
    assert any(report["error"] for report in ended.document["checkpoints"])


def test_verify_of_nothing_is_an_error(limpet_command, tmp_path):
    with Checkpointer(tmp_path / "run"):
        pass
    ended = limpet_command("verify", tmp_path / "run")
    assert ended.code == 1
    assert ended.err.startswith("error: ")


def test_restore_writes_arrays_as_npy_and_the_rest_as_json(limpet_command, run, tmp_path):
    ended = limpet_command("restore", run, tmp_path / "out", "--at", "10", "--json")
    assert ended.code == 0
    entries = {entry["path"]: entry for entry in json.loads((tmp_path / "out" / "state.json").read_text())}
    array = np.load(tmp_path / "out" / entries['model."layer.1"']["file"], allow_pickle=False)
    assert np.array_equal(array, STATE["model"]["layer.1"])
    assert entries["epoch"]["value"] == 10
    assert entries["name"]["value"] == "ada"


def test_restore_gives_bytes_back_as_a_file(limpet_command, tmp_path):
    with Checkpointer(tmp_path / "run") as cp:
        cp.write(b"\x00seed")
    assert limpet_command("restore", tmp_path / "run", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "root.bin").read_bytes() == b"\x00seed"


def test_restore_gives_a_saved_directory_back(limpet_command, tmp_path):
    (tmp_path / "work" / "logs").mkdir(parents=True)
    (tmp_path / "work" / "logs" / "a.txt").write_text("hello")
    with Checkpointer(tmp_path / "run") as cp:
        cp.save(tmp_path / "work", step=1)
    ended = limpet_command("restore", tmp_path / "run", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "logs" / "a.txt").read_text() == "hello"
    assert not (tmp_path / "out" / "state.json").exists()


def test_restore_refuses_a_folder_that_holds_something(limpet_command, run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    ended = limpet_command("restore", run, tmp_path)
    assert ended.code == 1
    assert "--force" in ended.err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_restore_with_force_writes_beside_what_is_there(limpet_command, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert limpet_command("restore", run, tmp_path / "out", "--force").code == 0
    assert {"mine.txt", "state.json"} < {path.name for path in (tmp_path / "out").iterdir()}


def test_restore_onto_a_file_is_refused(limpet_command, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = limpet_command("restore", run, tmp_path / "file", "--force")
    assert ended.code == 1
    assert ended.err.startswith("error: ")


def test_reading_commands_work_while_a_writer_is_alive(limpet_command, tmp_path):
    with Checkpointer(tmp_path / "run") as cp:
        cp.write(STATE, step=1, durable=True)
        assert limpet_command("ls", tmp_path / "run").code == 0
        assert limpet_command("verify", tmp_path / "run").code == 0
        cp.write(STATE, step=2, durable=True)  # nobody took the run over


@pytest.mark.parametrize("url", ["nosuch://bucket/run", "s3://"])
def test_a_url_that_means_nothing_is_one_line_of_error(limpet_command, url):
    ended = limpet_command("ls", url)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


def test_an_option_of_the_store_without_a_value_is_a_wrong_call_and_is_not_echoed(limpet_command, run):
    ended = limpet_command("ls", run, "--storage", "hush-hush")
    assert ended.code == 2
    assert "hush" not in ended.out + ended.err


def test_the_version_is_that_of_the_package(limpet_command):
    ended = limpet_command("--version")
    assert (ended.code, ended.out) == (0, f"limpet {limpet.__version__}\n")


def test_a_command_that_does_not_exist_is_a_wrong_call(limpet_command):
    assert limpet_command("frobnicate").code == 2


def test_the_demo_refuses_a_store_that_dies_with_its_process(limpet_command):
    ended = limpet_command("demo", "--url", "memory://x")
    assert ended.code == 1
    assert ended.err.startswith("error: memory:// lives in one process")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_the_script_says_what_to_install(package):
    script = f"import sys; sys.modules[{package!r}] = None; from limpet.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert 'pip install "limpet[cli]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_importing_the_command_package_imports_neither_typer_nor_rich():
    script = "import limpet.cli, sys; sys.exit(bool({'typer', 'rich', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], check=True)
