"""The formats that edge reads and writes: a JSON Schema for each, and examples (`edge schema`).

The schemas come from the TypedDicts that the readers enforce. docs/formats.md has the same fields as tables.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from edge.system.config import SETTINGS, VERSION
from edge.system.text import did_you_mean
from edge.system.typed_json import DRAFT, json_schema

_EXAMPLES = Path(__file__).with_name("examples")


@dataclass(frozen=True)
class Format:
    """A format: its name for `edge schema`, what it is in one line, and the file with an example, if there is one."""

    name: str
    about: str
    example: str | None = None


FORMATS = (
    Format("replay-row", "one line of --replay: messages, reference answer", "replay-row.jsonl"),
    Format("messages", "the file of --messages, and of edge chat --load", "messages.json"),
    Format("prediction", "one line of the predictions file of edge score", "prediction.jsonl"),
    Format("action", "the JSON that a model answers with"),
    Format("result", "the result JSON of edge eval and edge score"),
    Format("trials", "the result JSON of edge trial"),
    Format("measurement", "the measurement JSON of edge measure"),
    Format("session-record", "one line of the record of edge agent"),
    Format("allowlist", "the TOML file of edge agent --allow, as JSON", "allowlist.toml"),
    Format("conversation", "the file that /save of edge chat writes"),
    Format("comparison", "the JSON of edge compare --json"),
    Format("ranking", "the JSON of edge rank --json"),
    Format("sweep", "sweep.json, the state of edge sweep"),
    Format("costs", "costs.json, the measurements of edge convert --quant auto"),
    Format("config", "config.toml, the file of settings, as JSON"),
    Format("tuned", "config.tuned.json, what edge tune measured"),
    Format("known-model", "the TOML file of a known model, as JSON"),
)


def find_format(name: str) -> Format:
    """The format of that name. Raises EdgeError that lists the names."""
    for one in FORMATS:
        if one.name == name:
            return one
    names = [one.name for one in FORMATS]
    meant = did_you_mean(name, names)
    raise EdgeError(
        f"{name}: no format has this name (the names: {', '.join(names)})" + (f"; {meant}" if meant else "")
    )


def example(name: str) -> str | None:
    """The text of the example file of a format, None if it has none. Raises EdgeError for an unknown name."""
    file = find_format(name).example
    return None if file is None else (_EXAMPLES / file).read_text(encoding="utf-8")


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a format. Raises EdgeError for an unknown name.

    A line of a file is valid if the schema accepts it. A schema cannot say that no step may be there twice, nor what
    only a program can check, such as the regular expressions of an allowlist.
    """
    title = f"{find_format(name).name}: {find_format(name).about}"
    match name:
        case "replay-row":
            return _replay_row(title)
        case "messages":
            return _messages(title)
        case "action":
            from edge.answer.schema import action_schema

            return {"$schema": DRAFT, "title": title, **action_schema()}
        case "prediction":
            from edge.replay.stored_result import Prediction

            return json_schema(Prediction, title=title)
        case "result":
            return _result(title)
        case "trials":
            from edge.compare.trials import TrialResult

            return json_schema(TrialResult, title=title)
        case "measurement":
            return _measurement(title)
        case "session-record":
            return _session_record(title)
        case "allowlist":
            return _allowlist(title)
        case "conversation":
            from edge.chat.stored import SavedConversation

            return json_schema(SavedConversation, title=title)
        case "comparison":
            from edge.compare.stored import StoredComparison

            return json_schema(StoredComparison, title=title)
        case "ranking":
            from edge.compare.ranking_text import StoredRanking

            return json_schema(StoredRanking, title=title)
        case "sweep":
            from edge.sweep_state import StoredSweep

            return json_schema(StoredSweep, title=title)
        case "costs":
            from edge.mixing.state import StoredCosts

            return json_schema(StoredCosts, title=title)
        case "config":
            return _config(title)
        case "tuned":
            from edge.system.tuned import TunedFile

            return json_schema(TunedFile, title=title)
        case _:
            from edge.replay.known import KnownFields

            return json_schema(KnownFields, title=title, closed=(KnownFields,))


def _replay_row(title: str) -> dict[str, Any]:
    from edge.replay.rows import RowLine

    return json_schema(RowLine, title=title)


def _messages(title: str) -> dict[str, Any]:
    """A list of messages, or an object that has one."""
    from edge.prompt import MESSAGES_VERSION, Messages

    listed = json_schema(Messages, title=title)
    definitions = {
        **listed.pop("$defs"),
        "Messages": {k: listed.pop(k) for k in ("type", "items", "minItems")},
    }
    messages = {"$ref": "#/$defs/Messages"}
    version = {"type": ["integer", "null"], "maximum": MESSAGES_VERSION}
    fields = {"schema_version": version, "messages": messages}
    whole = {"type": "object", "properties": fields, "required": ["messages"]}
    return {**listed, "anyOf": [messages, whole], "$defs": definitions}


def _result(title: str) -> dict[str, Any]:
    from edge.replay.stored_result import SHARES, Result

    schema = json_schema(Result, title=title)
    for name in SHARES:
        schema["$defs"]["Step"]["properties"][name] |= {"minimum": 0, "maximum": 1}
    return schema


# docs/measure.md says more about these figures. Likelihoods and divergences are in nats a token.
_MEASURED = {
    "timestamp": "When the measurement was written (UTC, ISO 8601).",
    "model": "Name of the model for people.",
    "model_path": "The model as the command named it.",
    "model_sha256": "SHA-256 of the model file.",
    "base": "Name of the base.",
    "base_path": "The base as the command named it.",
    "base_sha256": "SHA-256 of the base.",
    "eval_path": "The --replay or --text file.",
    "provenance": "Where the measurement comes from.",
    "kind": "rows or text.",
    "method": "How it was measured.",
    "load_time_sec": "Seconds to load the models.",
    "measure_time_sec": "Seconds to read the tokens.",
    "aggregate": "The figures over all tokens.",
    "intervals": "95 % interval of each mean: [low, high].",
    "by_position": "Figures by the index of the token in its answer.",
    "by_field": "Figures by the field of the action that the token writes.",
    "per_step": "Figures of each row or chunk.",
    "rows": "Number of rows or chunks.",
    "tasks": "Number of tasks.",
    "tokens": "Number of tokens.",
    "nll": "Mean negative log-likelihood of the reference's tokens.",
    "base_nll": "The same for the base.",
    "perplexity": "e to the power of nll; null if it is too large.",
    "base_perplexity": "The same for the base.",
    "nll_difference": "nll - base_nll.",
    "kl_mean": "Mean KL divergence of the model from the base.",
    "kl_median": "Median of the divergence.",
    "kl_p90": "Its 90th percentile.",
    "kl_p99": "Its 99th percentile.",
    "kl_max": "Its maximum.",
    "kl_error_bound": "Largest possible error of kl_mean.",
    "top1_agreement_pct": "Percent of tokens where both models have the same most probable token.",
    "first_commands": "Number of rows with a first command.",
    "first_command_prob": "Mean probability of the reference's first command.",
    "base_first_command_prob": "The same for the base.",
    "first_command_logprob": "Log probability of the reference's first command.",
    "base_first_command_logprob": "The same for the base.",
    "from": "First index of the group.",
    "to": "Last index of the group.",
    "field": "analysis, plan, keystrokes, duration, task_complete, structure or other.",
    "task_id": "Name of the task, or of the chunk.",
    "sample_idx": "Number of the sample.",
    "step_idx": "Number of the step.",
    "source_group": "Group of the row.",
    "bucket": "early, mid or late; text for chunks.",
    "prompt_tokens": "Tokens of the prompt.",
    "row_sha256": "SHA-256 of the row's messages and ref_raw.",
    "prompt_sha256": "SHA-256 of the rendered prompt.",
    "top": "Number of tokens whose exact logits are kept of the base.",
    "lumped_below": "Largest mass of the other tokens that are put together.",
    "class_width": "Width of the classes of the other tokens, in nats.",
    "chunk": "--chunk; null for rows.",
    "context": "--context; null for the model's context length.",
    "limit": "--limit: only the first N rows or chunks.",
    "batch": "Tokens decoded in one batch.",
    "gpu_layers": "Layers on the GPU.",
    "flash_attention": "Whether flash attention was used, or auto.",
    "kv_type": "Number type of the KV cache.",
    "skipped_too_long": "Rows that did not fit into the context and were left out.",
    "tokens_decoded": "Tokens that the model read.",
    "first_command": "How first_command_prob is computed.",
    "notes": "What a reader of the figures must know.",
    "run": "All that the figures depend on; without --force, edge does not replace a file of another run.",
    "schema_version": "Version of this format.",
    "shard": "Which part of the rows or chunks it measures (--shard); absent in a whole measurement.",
    "positions": "Values at each position, in a shard only: edge join computes the figures from them.",
    "kl": "KL divergence from the base.",
    "kl_error": "Largest possible error of each divergence.",
    "same_top": "1 where both models have the same most probable token, else 0.",
    "fields": "Field of the action that the token writes.",
    "command": "First and last position + 1 of the first command.",
}


def _measurement(title: str) -> dict[str, Any]:
    from edge.measure.schema import FORMAT, Measurement

    schema = json_schema(Measurement, title=title)
    for part in (schema, *schema["$defs"].values()):
        for name, field in part["properties"].items():
            if name in _MEASURED and "description" not in field:
                part["properties"][name] = {"description": _MEASURED[name], **field}
    schema["properties"]["measurement"] = {
        "description": "The version of this format. No other JSON of edge has this field.",
        "const": FORMAT,
    }
    return schema


def _session_record(title: str) -> dict[str, Any]:
    """A replay row that has all fields of a record: where both describe a field, the row's rules are the stricter."""
    from edge.agent.record import RecordRow

    record, row = json_schema(RecordRow, title=title), _replay_row("")
    for name, field in record["properties"].items():
        if name in row["properties"] and name not in ("total_steps", "source", "source_group"):
            field |= {key: value for key, value in row["properties"][name].items() if key != "description"}
    record["$defs"] |= row["$defs"]
    return record


def _allowlist(title: str) -> dict[str, Any]:
    from edge.agent.allow import KEYS, AllowlistFields, CommandTable, RuleTable

    schema = json_schema(AllowlistFields, title=title, closed=(AllowlistFields, CommandTable, RuleTable))
    schema["properties"]["keys"]["items"] = {"enum": list(KEYS)}
    return schema


def _config(title: str) -> dict[str, Any]:
    """The keys of the file of settings, each with the test of its setting."""
    version = {"description": "Version of this format.", "type": "integer", "minimum": 1, "maximum": VERSION}
    keys = {
        name: {"description": f"{setting.words[0].upper()}{setting.words[1:]}.", **setting.schema}
        for name, setting in SETTINGS.items()
    }
    return {
        "$schema": DRAFT,
        "title": title,
        "description": "Defaults for options. Each key is optional.",
        "type": "object",
        "properties": {"version": version, **keys},
        "additionalProperties": False,
    }
