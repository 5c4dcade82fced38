"""Recipes: mixed types from a file that llama-quantize reads too, kept in the GGUF's metadata."""

from pathlib import Path

import command_line
import pytest

from edge.conversion.inspect import Inspection, inspect
from edge.conversion.recipe import read_recipe
from edge.convert import TensorTypes, convert
from edge.errors import ConversionError
from edge.formats.gguf import read_tensors

LINES = r"""blk\.1\.attn_[qk]=Q6_K
ffn_down=q5_k   ^token_embd=iq4_nl
attn_=q8_0
"""


@pytest.fixture(scope="module")
def made(random_small_moe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was made with a recipe."""
    place = tmp_path_factory.mktemp("recipe")
    (place / "mix.recipe").write_text(LINES)
    recipe = read_recipe(place / "mix.recipe")
    return convert(
        random_small_moe_folder, out=place / "mix.gguf", tensor_types=TensorTypes(recipe=recipe), check=False
    ).path


@pytest.mark.slow
def test_the_first_line_that_matches_counts(made: Path) -> None:
    types = {tensor.name: tensor.type for tensor in read_tensors(made)}
    assert types["blk.1.attn_q.weight"] == "Q6_K"
    assert types["blk.1.attn_output.weight"] == "Q8_0"
    assert types["blk.1.ffn_down_exps.weight"] == "Q5_K"
    assert types["token_embd.weight"] == "IQ4_NL"


@pytest.mark.slow
def test_the_tensors_are_those_of_the_same_patterns(
    made: Path, random_small_moe_folder: Path, tmp_path: Path
) -> None:
    patterns = [tuple(part.split("=")) for part in LINES.split()]
    types = TensorTypes([(pattern, kind) for pattern, kind in patterns])
    plain = convert(random_small_moe_folder, out=tmp_path / "x.gguf", tensor_types=types, check=False).path
    one, other = (
        [(t.name, t.type, path.read_bytes()[t.offset : t.offset + t.n_bytes]) for t in read_tensors(path)]
        for path in (made, plain)
    )
    assert one == other


@pytest.mark.slow
def test_the_file_is_its_own_recipe(made: Path, random_small_moe_folder: Path, tmp_path: Path) -> None:
    """To the last byte, through the command line."""
    again = tmp_path / "again.gguf"
    run = command_line.run("convert", random_small_moe_folder, "--recipe", made, "-o", again, "--no-check")
    assert run.returncode == 0, run.stderr
    assert again.read_bytes() == made.read_bytes()


def test_inspect_shows_the_lines(made: Path) -> None:
    found = inspect(made)
    assert isinstance(found, Inspection)
    assert list(found.recipe) == LINES.split()
    assert r"recipe       blk\.1\.attn_[qk]=Q6_K" in found.to_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "has no line PATTERN=TYPE"),
        (b"# a comment", 'entry 1 is "#"; a recipe has entries PATTERN=TYPE'),
        (b"attn_q=", 'entry 1 is "attn_q="'),
        (b"\xff\xfe", "it is not UTF-8 text (byte 0)"),
        (b"attn_q=q9_k", "q9_k is not a ggml type"),
        (b"nothing=q6_k", "is a recipe for another model"),
        (
            b"attn_q=q6_k attn_[[qk]]=q6_k ffn_(=q4_k token=q8_0",
            "x.recipe: ffn_(: is not a regular expression of C++",
        ),
        (b"attn_[[qk]]=q6_k", "is a recipe for another model"),  # Python warns of such a pattern
    ],
)
def test_a_wrong_recipe_is_refused(
    text: bytes, problem: str, random_small_moe_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.recipe"
    path.write_bytes(text)
    with pytest.raises(ConversionError) as caught:
        types = TensorTypes(recipe=read_recipe(path))
        convert(random_small_moe_folder, out=tmp_path / "x.gguf", tensor_types=types, check=False)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x.gguf").exists()


def test_a_pattern_that_python_cannot_read_is_llama_cpps_business(
    random_two_layers_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("(" * 2000 + "attn_q" + ")" * 2000 + "=q8_0")
    types = TensorTypes(recipe=read_recipe(path))
    done = convert(random_two_layers_folder, out=tmp_path / "x.gguf", tensor_types=types, check=False)
    assert {t.type for t in read_tensors(done.path) if "attn_q.weight" in t.name} == {"Q8_0"}


def test_a_model_without_a_recipe_is_none(tiny_q4: Path) -> None:
    with pytest.raises(ConversionError, match="was not made with a recipe"):
        read_recipe(tiny_q4)


def test_lines_that_match_nothing_are_noted(random_small_moe_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.recipe"
    path.write_text("attn_q=q6_k\nnothing=q6_k\n")
    done = convert(
        random_small_moe_folder,
        out=tmp_path / "x.gguf",
        tensor_types=TensorTypes(recipe=read_recipe(path)),
        check=False,
    )
    assert any(
        "1 of 2 lines match no tensor of this model, such as nothing" in line for line in done.warnings
    )
