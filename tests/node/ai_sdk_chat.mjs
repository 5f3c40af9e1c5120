// Takes the steps named by its arguments with the stock client of the AI SDK, and prints what a page would see.
//   node ai_sdk_chat.mjs <api> <chat> send:<text> begin:<text> regenerate resume …
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const [api, id, ...steps] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));
const shown = ({ id, role, parts }) => ({ id, role, parts });

const page = await fetch(`${api}/${id}`);
const messages = page.ok ? (await page.json()).messages : [];
const chat = new Chat({ id, messages, transport: new DefaultChatTransport({ api }) });

let seen = "";
chat["~registerMessagesCallback"](() => {
  const text = (chat.lastMessage?.parts ?? []).map((part) => part.text ?? "").join("");
  if (chat.lastMessage?.role === "assistant" && text !== seen) print({ text: (seen = text) });
});

for (const step of steps) {
  const [verb, argument] = step.split(/:(.*)/s);
  if (verb === "send") await chat.sendMessage({ text: argument });
  // React's StrictMode mounts a component twice, and each mount resumes.
  if (verb === "resume") await Promise.all([chat.resumeStream(), chat.resumeStream()]);
  if (verb === "regenerate") await chat.regenerate();
  if (verb === "begin") {
    const running = chat.sendMessage({ text: argument });
    while (!seen) await new Promise((resolve) => setTimeout(resolve, 5));
    await fetch(`${api}/${id}/stop`, { method: "POST" });
    await running;
  }
  print({ step: verb, status: chat.status, error: chat.error?.message ?? null, messages: chat.messages.map(shown) });
}
process.exit(0);
