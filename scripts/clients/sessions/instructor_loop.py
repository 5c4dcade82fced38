"""Instructor: one object in each of its modes."""

import instructor
from instructor.v2.core.errors import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel, Field


class File(BaseModel):
    """A file."""

    name: str = Field(min_length=1)
    size: int = Field(ge=0)
    kind: str | None = None


plain = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
modes = (
    instructor.Mode.TOOLS,
    instructor.Mode.TOOLS_STRICT,
    instructor.Mode.JSON_SCHEMA,
    instructor.Mode.JSON,
)
for mode in modes:
    client = instructor.from_openai(plain, mode=mode)
    messages = [{"role": "user", "content": "A file with its size."}]
    request = {
        "model": "edge",
        "response_model": File,
        "messages": messages,
        "max_tokens": 200,
        "max_retries": 0,
    }
    try:
        print("object:", mode.name, client.chat.completions.create(**request))
    except InstructorRetryException as error:
        if mode != instructor.Mode.JSON:
            raise
        print("a JSON object without the fields of this class:", str(error).splitlines()[0])
