// The OpenAI package for Node: its own loop of tool calls, streamed and not.
import { execSync } from "node:child_process";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8080/v1", apiKey: "none" });
const bash = {
  type: "function",
  function: {
    name: "bash",
    description: "Run a shell command.",
    parameters: { type: "object", properties: { command: { type: "string" } }, required: ["command"] },
    parse: JSON.parse,
    function: ({ command }) => {
      console.log("tool:", command);
      try {
        return execSync(command, { timeout: 20000 }).toString();
      } catch (error) {
        return String(error.stderr ?? error);
      }
    },
  },
};
for (const stream of [false, true]) {
  const runner = client.chat.completions.runTools(
    {
      model: "edge",
      stream,
      max_completion_tokens: 200,
      messages: [{ role: "user", content: "List the files here." }],
      tools: [bash],
    },
    { maxChatCompletions: 3 },
  );
  await runner.done();
  console.log("ended:", (await runner.allChatCompletions()).map((one) => one.choices[0].finish_reason).join(" "));
}
