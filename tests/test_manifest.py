import json
import subprocess

from moe_adapt.manifest import collect, git_commit, peak_memory_mb, versions


def test_collect_is_json():
    record = json.loads(json.dumps(collect()))
    assert {"versions", "python", "platform", "command", "git_commit"} <= set(record)


def test_versions_name_what_results_depend_on():
    assert {"torch", "peft", "lightning", "transformers"} <= set(versions())


def test_git_commit(tmp_path):
    assert git_commit(tmp_path) is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40


def test_peak_memory_is_in_megabytes():
    assert 10 < peak_memory_mb() < 1e6
