"""Names of files on which people's programs and other agents act: builds, hooks, package managers, editors, agents.

A change of such a file runs later, outside the sandbox and unasked. The names are a help for a person; they are not
complete.
"""

import re
import sys
import unicodedata

_AGENT = (
    "agents?|claude|gemini|qwen|codex|copilot|warp|crush|opencode|kimi|grok|jules|kiro|goose|cursor|windsurf|cline|roo|"
    "aider|junie|augment|trae|replit|iflow|devin|amp|skill|hermes|droid|codebuff|openhands|vibe|cody|zencoder"
)
_INSTRUCTIONS = re.compile(
    rf"(?:{_AGENT})(?:\.[\w-]+)*\.(?:md|mdc)|(?:[\w-]+-)?instructions\.md|conventions\.md|.*\.(?:instructions|prompt|"
    r"chatmode)\.md|.*\.mdc|\.?(?:mcp|opencode|crush|claude|codex|gemini|qwen|cursor|kiro)(?:[._-](?:config|settings|"
    r"local|desktop[._-]config))*\.(?:jsonc?|toml|ya?ml)|\.(?:cursor|windsurf|cline|roo|aider|kilocode|goose)?rules(?:-"
    r"\w+)?|\.?goosehints|\.aider.*|\.roomodes"
)
_AGENT_FOLDERS = re.compile(
    r"\.(?:claude|cursor|codex|gemini|qwen|windsurf|clinerules|roo|kiro|opencode|crush|amp|goose|junie|trae|agents?|"
    r"continue|augment|aider|kilocode|openhands)(?:-\w+)?"
)
_BY_NAME = tuple(
    (words, re.compile(pattern))
    for words, pattern in (
        (
            "build file",
            r"(?:gnu)?makefile(?:\..+)?|.*\.(?:mk|cmake|bazel|bzl|pth)|cmakelists\.txt|meson\.build|build\.ninja|"
            r"\.?justfile|rakefile|taskfile\.ya?ml|(?:gulpfile|gruntfile)\..*|(?:tasks|noxfile|setup|conftest|"
            r"sitecustomize|usercustomize|manage|fabfile|conf|wsgi|asgi)\.py|tox\.ini|setup\.cfg|pytest\.ini|pyproject\.toml|"
            r"(?:build|settings)\.gradle(?:\.kts)?|gradlew?(?:\.bat)?|mvnw?(?:\.cmd)?|pom\.xml|build\.(?:xml|sbt|zig|rs)|"
            r"configure(?:\.ac)?|autogen\.sh|wscript|sconstruct|sconscript|snakefile|buck|build|workspace|dune|"
            r".*\.config\.[cm]?[jt]s|(?:docker|container)file(?:\..+)?|(?:docker-)?compose.*\.ya?ml|vagrantfile|procfile|"
            r".*\.(?:nix|csproj|vcxproj|sln|targets|props)|mix\.exs|\.babelrc.*|\.eslintrc.*|.*\.conf\.[cm]?[jt]s|"
            r"\.?latexmkrc|pylintrc(?:\.toml)?|mypy\.ini|dodo\.py|project\.clj|build\.boot|rebar\.config|config\.ru|"
            r".*\.(?:rake|tf)|(?:tilt|earth|brew|guard|cap|fast|danger|jam|berks)file|makefile\.pl|build\.pl|cpanfile|"
            r"premake\d?\.lua|xmake\.lua|(?:gradle-wrapper|gradle)\.properties|pulumi\.ya?ml|skaffold\.ya?ml|"
            r"docker-bake\.(?:hcl|json)|ansible\.cfg|activate\.r|(?:nx|turbo|devbox|lerna|rush|devcontainer)\.json|"
            r"cmake(?:user)?presets\.json|dvc\.yaml|dune-project|.*\.(?:gypi?|nims|nimble|opam|pr[oi]|podspec)|artisan|"
            r"(?:conanfile|gunicorn\.conf|celeryconfig|(?:jupyter|ipython)\w*_config)\.py|(?:kustomization|chart)\.ya?ml|"
            r"buildfile|pyvenv\.cfg|activate(?:\.\w+|_this\.py)?|"
            r".*\.(?:gradle(?:\.kts)?|m4|rockspec|tfvars|zig\.zon)|"
            r"terragrunt\.hcl|.*\.nf|nextflow\.config|thorfile|puppetfile|magefile\.go|setup\.l?hs|dub\.(?:json|sdl)|"
            r"(?:helmfile|werf|spack|playbook|site|mkdocs)\.ya?ml|webpack\.mix\.js|ember-cli-build\.js|angular\.json|"
            r"rector\.php|_targets\.r|book\.toml|doxyfile|configure\.in|waf|session\.vim|init\.(?:lua|el)|autoload\.php",
        ),
        (
            "package manifest",
            r"package(?:-lock)?\.json|npm-shrinkwrap\.json|yarn\.lock|pnpm-(?:lock|workspace)\.yaml|bun\.lockb?|"
            r"\.(?:npmrc|yarnrc.*|pypirc)|(?:.*-)?(?:requirements|constraints)(?:[-_.].*)?\.(?:txt|in)|pipfile(?:\.lock)?|"
            r"(?:poetry|uv|pdm|cargo|composer|gemfile|flake|podfile|mix|deno|pixi)\.lock|environment\.ya?ml|"
            r"(?:cargo|pixi)\.toml|go\.(?:mod|sum|work)|gemfile|.*\.gemspec|composer\.json|nuget\.config|.*\.cabal|"
            r"stack\.yaml|deno\.jsonc?|bunfig\.toml|(?:deps|bb|shadow-cljs)\.edn|shard\.ya?ml|cabal\.project.*|(?:vcpkg|elm)\.json|"
            r"(?:project|manifest)\.toml|renv\.lock|\.?pnpmfile\.c?js|import_map\.json|conanfile\.txt|cartfile|mintfile|package\.swift|podfile|pubspec\.(?:yaml|lock)|pip\.conf|rust-toolchain(?:\.toml)?",
        ),
        (
            "CI file",
            r"jenkinsfile|\.?gitlab-ci.*\.ya?ml|\.travis\.yml|azure-pipelines.*\.ya?ml|\.?appveyor\.yml|"
            r"cloudbuild\.ya?ml|bitbucket-pipelines\.yml|buildspec\.ya?ml|\.drone\.ya?ml|\.?cirrus\.yml|action\.ya?ml|"
            r"(?:netlify|fly|wrangler)\.toml|(?:vercel|renovate)\.json|serverless\.ya?ml|app\.ya?ml|dependabot\.yml|"
            r"codemagic\.yaml|\.goreleaser\.ya?ml",
        ),
        (
            "hook",
            r"\.?pre-commit-(?:config|hooks)\.ya?ml|\.?lefthook\.ya?ml|\.huskyrc.*|(?:pre|post)-(?:commit|push|checkout|"
            r"merge|receive|rebase|rewrite|applypatch|update)|(?:commit-msg|prepare-commit-msg|applypatch-msg|"
            r"fsmonitor-watchman|pre-auto-gc)",
        ),
        (
            "start-up file",
            r"\.(?:bash\w*|zsh\w*|z?profile|z?login|kshrc|inputrc|tmux\.conf|screenrc|xinitrc|xprofile|xsessionrc|envrc|env"
            r"(?:\..+)?|tool-versions|gitconfig|gitattributes|gitmodules|netrc|pythonrc|pdbrc|gdbinit|lldbinit|irbrc|"
            r"Rprofile|curlrc|wgetrc|mailcap|pam_environment|forward|rhosts)|mise\.toml|authorized_keys|crontab|.*\.(?:service|"
            r"timer|socket|desktop|plist|lnk|scf|url|bat|cmd|ps1|psm1|vbs|hta|command|reg)|autorun\.inf|desktop\.ini|web\.config",
        ),
        (
            "compiled library",
            r".*\.(?:so(?:\.\d+)*|pyd|dll|dylib|node|jar|war|whl|egg|phar|vsix|gem|deb|rpm|exe|com|scr|msi|pkg|dmg|pyz|"
            r"appimage|apk|xpi|crx|snap|flatpakref)",
        ),
        (
            "runs code when it is loaded",
            r".*\.(?:pkl|pickle|joblib|dill|pt|ckpt|h5|keras|docm|xlsm|pptm|scpt|applescript)",
        ),
        (
            "editor settings",
            r"tsconfig(?:\..+)?\.json|jsconfig\.json|\.(?:g?n?vimrc|exrc|emacs|dir-locals\.el|editorconfig|nvim\.lua)|.*\.code-workspace",
        ),
    )
)
_BY_FOLDER = {
    "package manifest": re.compile(r"requirements|constraints"),
    "hook": re.compile(r"hooks|\.githooks|\.husky"),
    "CI file": re.compile(r"workflows|\.circleci|\.gitlab|\.buildkite|\.github"),
    "editor settings": re.compile(r"\.(?:vscode|idea|zed|devcontainer|vim|nvim|emacs\.d)"),
    "start-up file": re.compile(r"\.(?:ssh|git|direnv)|cron\.\w+|autostart"),
}
_COMPILED = re.compile(r"__pycache__|.*\.(?:py[co]|pmc|elc|zwc)")


def replaces_source(path: str) -> str | None:
    """The part of the path that a program runs instead of a source beside it; None if none is known.

    Python, Perl, Emacs and zsh do so, also where a person has read the source.
    """
    parts = path.split("/")
    for end, part in enumerate(parts, 1):
        if _COMPILED.fullmatch(_plain(part)):
            return "/".join(parts[:end])
    return None


def instructs_agents(name: str) -> bool:
    """Whether other agents read a file of this name as instructions, or start programs that it names, unasked."""
    return _INSTRUCTIONS.fullmatch(_plain(name)) is not None


def acted_on(path: str) -> str | None:
    """What acts on the file, in two or three words; None if nothing is known to."""
    *folders, name = [_plain(part) for part in path.split("/") if part not in ("", ".")] or [""]
    if _INSTRUCTIONS.fullmatch(name) or any(_AGENT_FOLDERS.fullmatch(folder) for folder in folders):
        return "agents obey it"
    for words, pattern in _BY_NAME:
        if pattern.fullmatch(name):
            return words
    for words, pattern in _BY_FOLDER.items():
        if any(pattern.fullmatch(folder) for folder in folders):
            return words
    stem, _, kind = name.rpartition(".")
    if len(folders) == 1 and name == "__init__.py":  # a folder that is a module
        stem, folders = folders[0], []
    if not folders and kind == "py" and stem in sys.stdlib_module_names - {"test", "this"}:
        return "hides a module of Python"
    return None


def _plain(name: str) -> str:
    """The name as file systems compare it that ignore case, forms of letters, and dots and spaces at the end.

    Without invisible characters, and without the name of a stream (NTFS).
    """
    shown = "".join(char for char in name if unicodedata.category(char) != "Cf")
    plain = unicodedata.normalize("NFKC", shown).casefold()
    return plain.partition(":")[0].rstrip(" .") or plain
