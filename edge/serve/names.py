"""The names of the served models: the base, and each of its adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.answer.answering import ANSWER_KINDS, AnswerKind
from edge.errors import ServeError
from edge.llama.loading import Adapter
from edge.serve.request import BadRequestError


@dataclass(frozen=True)
class ServedNames:
    """`base`: the name of the model file; `adapters`: by name, in the order of the command line.

    `own`: the adapter that belongs to the model, and that its name means; see `edge.llama.loading.with_own_adapter`.
    """

    base: str
    adapters: dict[str, Adapter]
    own: Adapter | None = None

    @property
    def all(self) -> list[str]:
        """Every name, the base first."""
        return [self.base, *self.adapters]

    def choose(self, wanted: str | None) -> tuple[str, Adapter | None]:
        """The name and the adapter for the `model` of a request; None for a base without its own adapter.

        Without adapters any text means the base, and with one adapter any text but the base's name means that adapter.
        A name can end with the kind of answers, see `listed`.
        Raises BadRequestError for another text if there are several adapters.
        """
        name = self._without_kind(wanted)
        if name == self.base or not self.adapters:
            return (wanted if wanted and name == self.base else self.base), self.own
        if wanted is not None and name in self.adapters:
            return wanted, self.adapters[name]
        if len(self.adapters) == 1:
            return next(iter(self.adapters.items()))
        named = "no model is named" if wanted is None else f"the model {wanted[:100]!r} does not exist"
        raise BadRequestError(
            f"{named}; use one of {', '.join(self.all)}", "model", status=404, code="model_not_found"
        )

    def listed(self, answers: AnswerKind) -> list[str]:
        """Every name, and its second name, which gives the other kind of answers: `NAME-text`, or `NAME-action`."""
        other = next(kind for kind in ANSWER_KINDS if kind != answers)
        return [*self.all, *(second for name in self.all if (second := f"{name}-{other}") not in self.all)]

    def kind(self, wanted: object, answers: AnswerKind) -> AnswerKind:
        """The kind of answers that the `model` of a request gives; `answers`: that of all names without a kind."""
        if isinstance(wanted, str) and wanted not in self.all:
            for kind in ANSWER_KINDS:
                if wanted.removesuffix(f"-{kind}") != wanted and self._without_kind(wanted) in self.all:
                    return kind
        return answers

    def _without_kind(self, wanted: str | None) -> str | None:
        """The name without its kind of answers, if it is one of the names."""
        if wanted is not None and wanted not in self.all:
            for kind in ANSWER_KINDS:
                if (name := wanted.removesuffix(f"-{kind}")) in self.all:
                    return name
        return wanted


def served_names(model: Path, adapters: Sequence[Adapter]) -> ServedNames:
    """The names of a model file and its adapters: those of the files. Raises ServeError if two names are equal."""
    base, named, own = model.stem, dict[str, Adapter](), None
    for adapter in adapters:
        if adapter.is_default:
            own = adapter
            continue
        name = adapter.path.stem
        if name == base or name in named:
            raise ServeError(
                f"{adapter.path}: {name} is also the name of another file that is served; rename one of them"
            )
        named[name] = adapter
    return ServedNames(base, named, own)
