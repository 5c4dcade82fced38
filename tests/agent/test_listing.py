"""The list of what a session changed, and the diff: nothing important is hidden among decoys.

.venv/bin/pytest tests/agent/test_listing.py
"""

import io
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from edge.agent.listing import shown_changes, shown_diff
from edge.terminal.obeyed import acted_on, instructs_agents
from edge.terminal.packed import copy_archive, pack, read_base
from edge.terminal.workfolder import Comparison, compare

pytestmark = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")
MOST = 64 << 20


class Session:
    """A folder, and a copy of it that a session changes."""

    def __init__(self, place: Path) -> None:
        self.folder, self.inside, self.place = place / "folder", place / "inside", place
        self.folder.mkdir()
        self.inside.mkdir()
        for name in ("a.txt", "Makefile", "old.txt", "tool"):
            (self.folder / name).write_text(f"{name}\n")
        (self.folder / "tool").chmod(0o755)

    def begin(self) -> None:
        pack(self.folder, self.place / "in.tar", MOST)
        subprocess.run(["tar", "-xf", self.place / "in.tar", "-C", self.inside, "./"], check=True)

    def compare(self, *, dot_files: bool = False) -> Comparison:
        command = ["tar", "-c", "--format=gnu", "-b", "1", "-C", self.inside, "-f", "-", "."]
        data = subprocess.run(command, check=True, capture_output=True).stdout
        packed = self.place / "saved.tar"
        with packed.open("wb") as file:
            copy_archive(io.BytesIO(data).read, read_base(self.place / "in.tar"), file, MOST)
        return compare(self.folder, packed, dot_files=dot_files)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    session = Session(tmp_path)
    session.begin()
    return session


def lines_of(comparison: Comparison, *, whole: bool = False) -> list[str]:
    return shown_changes(comparison, whole=whole).plain.splitlines()


def test_decoys_hide_no_changed_makefile(session: Session) -> None:
    for number in range(300):
        (session.inside / f"{number:03}-decoy").write_text("x")
    (session.inside / "Makefile").write_text("all:\n\tevil\n")
    (session.inside / "old.txt").unlink()
    lines = lines_of(session.compare())
    assert lines[1:4] == ["  - old.txt", "  ~ Makefile   build file", "  + ./ (300 new paths)"]
    assert lines[-1] == "1 changed, 1 deleted, 300 new. Look at: Makefile" and len(lines) == 5
    assert len(lines_of(session.compare(), whole=True)) == 304


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["changed", "deleted", "withheld", "new", "new and marked", "in folders"])
def test_many_changes_of_one_kind_hide_none_of_another(tmp_path: Path, kind: str) -> None:
    session = Session(tmp_path)
    for number in range(400):
        (session.folder / f"{number:03}").write_text("x")
    session.begin()
    for number in range(400):
        place = session.inside / f"{number:03}"
        if kind == "changed":
            place.write_text("y")
        elif kind == "deleted":
            place.unlink()
        elif kind == "withheld":
            (session.inside / f".{number:03}").write_text("y")
        elif kind == "new":
            (session.inside / f"new{number:03}").write_text("y")
        else:
            folder = session.inside / f"folder{number:03}" / "inner"
            folder.mkdir(parents=True)
            (folder / ("Makefile" if kind == "new and marked" else "x")).write_text("y")
    (session.inside / "Makefile").write_text("evil\n")
    (session.inside / "package.json").write_text("evil\n")
    (session.inside / "old.txt").unlink()
    (session.inside / "CLAUDE.local.md").write_text("obey\n")
    (session.inside / "a.txt").chmod(0o755)
    lines = lines_of(session.compare())
    for line in (
        "  ~ Makefile   build file",
        "  + package.json   package manifest",
        "  ~ a.txt   becomes executable",
        "  - old.txt",
        "  ! CLAUDE.local.md: not brought back: other agents read it as instructions (--dot-files brings it back)",
    ):
        if line not in lines:  # unmarked, and many of the same kind: there is a line that counts them
            assert line.startswith("  -" if kind == "deleted" else "  !" if kind == "withheld" else "?"), line
            assert any("more like these" in one for one in lines)
    assert len(lines) < 120 or kind == "new and marked"
    assert "Makefile" in lines[-1] and "package.json" in lines[-1] and "a.txt" in lines[-1]
    assert (
        sum(char in "~+-!" for char in (line[2:3] for line in lines_of(session.compare(), whole=True))) > 400
    )


def test_additions_are_grouped_by_folder(session: Session) -> None:
    for name in ("src/app/views", "src/app/models", "docs"):
        (session.inside / name).mkdir(parents=True)
        for number in range(30):
            (session.inside / name / f"f{number}").write_text("x")
    lines = lines_of(session.compare())
    assert "  + src/app/views/ (30 new paths)" in lines and "  + docs/ (30 new paths)" in lines
    assert len(lines) < 12


def test_files_and_folders_are_marked(session: Session) -> None:
    (session.inside / "tool").write_text("#!/bin/sh\nevil\n")
    (session.inside / "new.sh").write_text("#!/bin/sh\n")
    (session.inside / "new.sh").chmod(0o755)
    (session.inside / "where").symlink_to("a.txt")
    (session.inside / ".github" / "workflows").mkdir(parents=True)
    (session.inside / ".github" / "workflows" / "x.yml").write_text("x")
    (session.inside / "AGENTS.md").write_text("x")
    (session.inside / "pl\u3164ain").write_text("x")
    (session.inside / "old.txt ").write_text("x")
    (session.inside / " d").mkdir()
    shown = lines_of(session.compare(dot_files=True))
    for line in (
        "  ~ tool   executable",
        "  + new.sh   executable",
        "  + where   link to a.txt",
        "  + .github/workflows/x.yml   CI file",
        "  + AGENTS.md   agents obey it",
        "  + pl\\u3164ain",
        "  + old.txt\\x20",
        "  + \\x20d",
    ):
        assert line in shown, shown
    assert (
        "  ! AGENTS.md: not brought back: other agents read it as instructions (--dot-files brings it back)"
        in (lines_of(session.compare()))
    )


def test_blanks_at_the_ends_of_folders_and_link_targets_are_shown(session: Session) -> None:
    (session.inside / "Makefile ").write_text("x\n")
    (session.inside / "where").symlink_to("a.txt ")
    for number in range(25):
        (session.inside / f"d{number}").mkdir()
    (session.inside / "src ").mkdir()
    for number in range(25):
        (session.inside / "src " / f"{number}").write_text("x")
    shown = lines_of(session.compare())
    assert r"  + src\x20/ (25 new paths)" in shown and r"  + where   link to a.txt\x20" in shown, shown
    assert r"+++ b/Makefile\x20" in shown_diff(session.compare(), "Makefile ").plain.splitlines()


def test_a_pile_of_accents_does_not_paint_over_other_lines(session: Session) -> None:
    (session.inside / ("n" + "\u0301" * 60)).write_text("x" + "\u0301" * 60 + "\n")
    comparison = session.compare()
    assert shown_changes(comparison).plain.count("\u0301") == 4
    assert "\u0301" * 5 not in shown_diff(comparison).plain


def test_no_changes(session: Session) -> None:
    assert lines_of(session.compare()) == ["The work folder is unchanged."]
    assert shown_diff(session.compare()).plain == "Nothing changed."


# --- names ---

AGENTS = """AGENTS.md AGENTS.override.md CLAUDE.md CLAUDE.local.md QWEN.md GEMINI.md .cursorrules mcp.json
.mcp.json crush.json CRUSH.md opencode.json opencode.jsonc CONVENTIONS.md WARP.md copilot-instructions.md
.windsurfrules .clinerules .goosehints a.instructions.md rules.mdc agents.MD
claude.md .aider.conf.yml .roomodes SKILL.md claude_desktop_config.json AGENT\u200bS.md ＡGENTS.md
CLAUDE.md. AGENTS.md:stream"""
ACTED_ON = {
    "build file": (
        "Makefile GNUmakefile makefile CMakeLists.txt build.rs build.gradle.kts tox.ini conftest.py "
        "setup.py pyproject.toml Dockerfile vite.config.ts jest.config.js sub/Makefile justfile "
        "Rakefile gradlew pom.xml x.pth karma.conf.js .latexmkrc pylintrc mypy.ini project.clj main.tf "
        "gradle/wrapper/gradle-wrapper.properties ansible.cfg Makefile.PL renv/activate.R "
        "venv/pyvenv.cfg venv/bin/activate venv/bin/activate.fish CMakePresets.json binding.gyp config.nims "
        "dune-project conanfile.py jupyter_notebook_config.py gunicorn.conf.py dvc.yaml x.podspec lerna.json "
        "Chart.yaml docs/conf.py wsgi.py init.gradle settings.gradle.kts terragrunt.hcl x.tfvars main.nf "
        "aclocal.m4 magefile.go "
        "Setup.hs playbook.yml helmfile.yaml angular.json Session.vim init.lua vendor/autoload.php build.zig.zon"
    ),
    "package manifest": (
        "package.json package-lock.json requirements.txt requirements-dev.txt Cargo.toml go.mod "
        "Gemfile Pipfile poetry.lock uv.lock composer.json .npmrc bunfig.toml deps.edn vcpkg.json shard.yml "
        "requirements/dev.txt Project.toml renv.lock pnpmfile.cjs import_map.json"
    ),
    "CI file": (
        ".gitlab-ci.yml Jenkinsfile .github/workflows/a.yml .circleci/config.yml "
        "azure-pipelines.yml action.yml"
    ),
    "hook": (".pre-commit-config.yaml hooks/pre-commit .husky/x .git/hooks/post-checkout lefthook.yml"),
    "start-up file": (
        ".bashrc .profile .zshrc .envrc .env .gitconfig .ssh/config .gitattributes x.service .env.local "
        "a.lnk a.url a.bat a.PS1 a.command autorun.inf Desktop.ini"
    ),
    "editor settings": (
        ".vscode/tasks.json .idea/workspace.xml .vimrc .exrc a.code-workspace .devcontainer/x.json tsconfig.json"
    ),
    "compiled library": (
        "a/fast.cpython-311-x86_64-linux-gnu.so libx.so.1 x.pyd addon.node gradle-wrapper.jar x.vsix x.deb "
        "a.exe a.msi a.scr a.AppImage a.pyz a.xpi"
    ),
    "runs code when it is loaded": "model.pkl a/x.joblib model.pt a.docm a.xlsm a.scpt",
    "hides a module of Python": "random.py JSON.py json/__init__.py",
}
ORDINARY = """README.md src/a.py a.txt docs/agents-and-models.md data.json notes.md cursor-pagination.md
index.js main.go image.png test_a.py config.json make.py x/hook.py tests/data.csv package.txt
claude_notes.txt my-claude.md.txt test.py app/types.py app/json.py awk.txt app/json/__init__.py app/__init__.py"""


def test_names_that_agents_and_programs_act_on() -> None:
    for name in AGENTS.split():
        assert instructs_agents(name) and acted_on(f"sub/{name}") == "agents obey it", name
    assert instructs_agents("CLAUDE.md ") and acted_on("Makefile. ") == "build file"
    for kind, names in ACTED_ON.items():
        for name in names.split():
            assert acted_on(name) == kind, name
    for name in ORDINARY.split():
        assert acted_on(name) is None and not instructs_agents(name), name
    assert acted_on(".claude/settings.json") == acted_on("x/.cursor/rules/a.txt") == "agents obey it"


# --- the diff ---


def test_the_diff_shows_marked_files_first(session: Session) -> None:
    (session.inside / "a.txt").write_text("b\x1b[2J\n")
    (session.inside / "Makefile").write_text("evil\n")
    (session.inside / "old.txt").unlink()
    (session.inside / "z.bin").write_bytes(b"\0\1")
    shown = shown_diff(session.compare()).plain
    assert shown.index("-Makefile") < shown.index("-a.txt") and "+evil" in shown and "-old.txt" in shown
    assert "+b\\x1b[2J" in shown and "\x1b" not in shown
    assert "z.bin: not text, or too long to compare (0 bytes → 2 bytes)" in shown
    only = shown_diff(session.compare(), "Makefile").plain
    assert "+evil" in only and "a.txt" not in only
    assert shown_diff(session.compare(), "none").plain == "none: nothing changed there"


def test_the_diff_of_one_file_is_whole(session: Session) -> None:
    (session.inside / "a.txt").write_text("".join(f"{number}\n" for number in range(1000)))
    assert "more lines: d a.txt" in shown_diff(session.compare()).plain
    assert "+999" in shown_diff(session.compare(), "a.txt").plain
    (session.inside / "a.txt").write_text("x\n" * 300_000)
    assert "a.txt: not text, or too long to compare" in shown_diff(session.compare(), "a.txt").plain
    (session.inside / "a.txt").write_text("".join(f"{number % 50}\n" for number in range(20_000)))
    assert "lines differ" in shown_diff(session.compare(), "a.txt").plain


def test_what_was_withheld_can_be_read(session: Session) -> None:
    (session.inside / ".env").write_text("KEY=1\n")
    assert "+KEY=1" in shown_diff(session.compare(), ".env").plain


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch is not installed")
def test_the_diff_is_one_that_patch_reads(tmp_path: Path) -> None:
    random.seed(0)
    session = Session(tmp_path)
    for number in range(40):
        lines = [random.choice("abcdef") for _ in range(random.randint(0, 40))]
        (session.folder / f"f{number}").write_text("".join(f"{line}\n" for line in lines))
    session.begin()
    for number in range(40):
        place = session.inside / f"f{number}"
        lines = place.read_text().splitlines()
        for _ in range(random.randint(1, 4)):
            lines.insert(random.randint(0, len(lines)), random.choice("xyz"))
            if random.random() < 0.5:
                lines.pop(random.randrange(len(lines)))
        place.write_text("".join(f"{line}\n" for line in lines))
    diff = shown_diff(session.compare()).plain
    subprocess.run(["patch", "-p1", "-s", "-d", session.folder], input=diff, text=True, check=True)
    for place in session.inside.iterdir():
        assert (session.folder / place.name).read_text() == place.read_text(), place.name
