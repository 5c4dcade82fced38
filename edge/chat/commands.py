"""The lines that begin with a slash: they change or show something, and the model does not see them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge.chat.conversation import Conversation
from edge.chat.entries import ReadLine, read_block
from edge.chat.settings import changed, full_name, shown
from edge.chat.stored import load, save
from edge.errors import EdgeError
from edge.system.outputs import check_output
from edge.system.paths import at_home
from edge.system.places import read_text
from edge.system.text import counted

HELP = '''\
/save FILE          Save the conversation. Ask before another file is replaced.
/load FILE          Continue a saved conversation or a messages file.
/screen FILE|-      Add a screen to the next message. -: paste it, then """.
/screen             Remove the screen.
/system TEXT        Set the system prompt; "" for none. No TEXT: show it.
/clear              Forget all messages; keep the system prompt and settings.
/set NAME VALUE     Change a setting, for example: /set temperature 0.2
/show               Show the model, the settings and the token counts.
/show messages      Show the conversation.
/help, /?           Show this list.
/bye, Ctrl-D        End.

"""                 Begin a message of many lines. End it with the same marks.
Ctrl-C              Stop the answer.'''
_END = ("/bye", "/exit", "/quit")


@dataclass
class Commands:
    """Runs commands on a conversation. `say` shows lines, `confirm` asks a yes-or-no question; None: nobody answers."""

    conversation: Conversation
    read_line: ReadLine
    say: Callable[[str], None]
    confirm: Callable[[str], bool] | None = None
    _screens: list[Path] = field(default_factory=list)  # the files that were read as screens

    def run(self, line: str) -> bool:
        """Run one command; False if it ends the session. Raises EdgeError, and nothing has changed then."""
        name, _, rest = line.strip().partition(" ")
        name, rest = name.lower(), rest.strip()
        if name in _END:
            return False
        commands: dict[str, Callable[[str], None]] = {
            "/save": self._save,
            "/load": self._load,
            "/screen": self._screen,
            "/system": self._system,
            "/clear": self._clear,
            "/set": self._set,
            "/show": self._show,
            "/help": lambda _: self.say(HELP),
            "/?": lambda _: self.say(HELP),
        }
        if name not in commands:
            raise EdgeError(
                f'{name}: no command has this name; /help lists them. Put """ around a message that begins with /'
            )
        commands[name](rest)
        return True

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        runner = self.conversation.runner
        adapters = [loaded.adapter.path for loaded in runner.engine.adapters]
        inputs = [runner.model_file.path, *adapters, *self._screens]
        check_output(path, inputs, error=EdgeError, option="/save")
        if path.is_file() and path.resolve() != self.conversation.file:
            if self.confirm is None:
                raise EdgeError(f"{path}: exists; choose another name, or remove the file first")
            if not self.confirm(f"{path} exists. Replace it?"):
                self.say("not saved")
                return
        self.say(f"{path}: {counted(save(self.conversation, path), 'message')} saved")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        self.say(f"{path}: {counted(load(self.conversation, path), 'message')} loaded")

    def _screen(self, rest: str) -> None:
        if not rest:
            self.conversation.screen = None
            self.say("the next message has no screen")
            return
        if rest == "-":
            text = read_block(self.read_line)
        else:
            self._screens.append(_path(rest, "/screen"))
            text = read_text(self._screens[-1])
        self.conversation.screen = text
        self.say(f"the next message has a screen of {counted(len(text.splitlines()), 'line')}")

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = _unquoted(rest)
        self.say(f"system prompt: {self.conversation.system_prompt or 'none'}")

    def _clear(self, rest: str) -> None:
        self.conversation.clear()
        self.say("the conversation is empty")

    def _set(self, rest: str) -> None:
        name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        settings = self.conversation.settings
        before = dict(shown(settings))
        thought = self.conversation.runner.vocabulary.thought
        if name == "think" and value.strip() != "off" and thought is None:
            raise EdgeError("think: this model has no tokens that mark a thought, so it cannot be set")
        other = {
            "verbose": replace(settings, stats=True),
            "quiet": replace(settings, stats=False),
            "think": replace(settings, think=None),
            "nothink": replace(settings, think=0),
            "wordwrap": replace(settings, wordwrap=True),
            "nowordwrap": replace(settings, wordwrap=False),
        }
        if name == "system":
            self._system(value.strip())
        elif name in other and not value:
            self.conversation.settings = other[name]
        elif not name:
            self.say(self._settings())
        else:
            self.conversation.settings = changed(settings, name, value)
            name = full_name(name)
        after = dict(shown(self.conversation.settings))
        for one in after:
            if after[one] != before[one] or (after == before and one == name):
                self.say(f"{one} is {after[one]}")

    def _show(self, rest: str) -> None:
        if rest == "messages":
            for message in self.conversation.messages:
                self.say(f"{message['role']}: {message.get('content') or ''}")
            return
        if rest:
            raise EdgeError(f"{rest}: /show has no such part; use /show, or /show messages")
        talk = self.conversation
        model = talk.runner.model_file
        adapters = "".join(f"adapter       {loaded.adapter}\n" for loaded in talk.runner.engine.adapters)
        self.say(
            f"model         {model.path} ({model.name}, {model.file_type})\n{adapters}"
            f"answers       {talk.answers}\n"
            f"conversation  {counted(len(talk.messages), 'message')}, "
            f"{talk.prompt_tokens:,} of {talk.context:,} tokens\n"
            f"system        {talk.system_prompt or 'none'}\n{self._settings()}"
        )

    def _settings(self) -> str:
        return "\n".join(f"{name:<19} {value}" for name, value in shown(self.conversation.settings))


def _path(text: str, command: str) -> Path:
    if not text:
        raise EdgeError(f"{command} needs the name of a file")
    return at_home(_unquoted(text), command)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
