// The AI SDK with its provider for OpenAI-compatible servers: a text, an object, and loops of tool calls.
import { execSync } from "node:child_process";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const edge = createOpenAICompatible({
  name: "edge",
  baseURL: "http://127.0.0.1:8080/v1",
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const bash = tool({
  description: "Run a shell command.",
  inputSchema: z.object({ command: z.string(), timeout: z.number().int().positive().max(60).optional() }),
  execute: async ({ command }) => {
    console.log("tool:", command);
    try {
      return execSync(command, { timeout: 20000 }).toString();
    } catch (error) {
      return String(error.stderr ?? error);
    }
  },
});
const common = { model: edge("edge"), maxOutputTokens: 200, tools: { bash }, stopWhen: stepCountIs(3) };
const whole = await generateText({ ...common, prompt: "List the files here." });
console.log("ended:", whole.finishReason, whole.steps.length);
const streamed = streamText({ ...common, prompt: "Show notes.txt.", toolChoice: "required" });
for await (const part of streamed.fullStream) if (part.type === "error") throw part.error;
console.log("ended:", await streamed.finishReason, (await streamed.steps).length);
const object = await generateText({
  model: edge("edge"),
  maxOutputTokens: 200,
  prompt: "A file with its size.",
  output: Output.object({ schema: z.object({ name: z.string(), size: z.number().int().nonnegative() }) }),
});
console.log("object:", JSON.stringify(object.output));
