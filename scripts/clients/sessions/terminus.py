"""Harbor's Terminus-2: the agent itself, with a shell of this sandbox as its environment.

terminus.py TASK
"""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENAI_API_KEY", "none")

from harbor.agents.terminus_2.terminus_2 import Terminus2
from harbor.environments.base import BaseEnvironment, ExecResult
from harbor.models.agent.context import AgentContext
from harbor.models.task.config import EnvironmentConfig
from harbor.models.trial.paths import TrialPaths


class Here(BaseEnvironment):
    """Commands in this sandbox."""

    @staticmethod
    def type() -> str:
        return "here"

    def _validate_definition(self) -> None:
        pass

    async def start(self, force_build: bool) -> None:
        pass

    async def stop(self, delete: bool) -> None:
        pass

    async def upload_file(self, source_path: Path | str, target_path: str) -> None:
        shutil.copy(source_path, target_path)

    async def upload_dir(self, source_dir: Path | str, target_dir: str) -> None:
        shutil.copytree(source_dir, target_dir, dirs_exist_ok=True)

    async def download_file(self, source_path: str, target_path: Path | str) -> None:
        shutil.copy(source_path, target_path)

    async def download_dir(self, source_dir: str, target_dir: Path | str) -> None:
        shutil.copytree(source_dir, target_dir, dirs_exist_ok=True)

    async def exec(self, command: str, cwd=None, env=None, timeout_sec=None, user=None) -> ExecResult:
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=timeout_sec,
            capture_output=True,
            text=True,
            check=False,
        )
        return ExecResult(stdout=done.stdout, stderr=done.stderr, return_code=done.returncode)


async def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    home = Path.home()
    paths = TrialPaths(home / "trial")
    for folder in (paths.agent_dir, Path("/logs/agent")):
        folder.mkdir(parents=True, exist_ok=True)
    environment = Here(home, "here", "here__env", paths, EnvironmentConfig())
    agent = Terminus2(
        paths.agent_dir,
        "openai/edge",
        max_turns=4,
        api_base="http://127.0.0.1:8080/v1",
        temperature=0.0,
        record_terminal_session=False,
        enable_summarize=False,
        llm_call_kwargs={"max_tokens": 256},
    )
    context = AgentContext()
    await agent.setup(environment)
    await agent.run(sys.argv[1], environment, context)
    print("turns:", (context.metadata or {}).get("n_episodes"))
    for path in sorted(paths.agent_dir.iterdir()):
        print(path.name, path.stat().st_size)


asyncio.run(main())
