// Makes the calls named by its arguments with OpenAI's SDK for JavaScript, and prints what it returns.
//   node openai_calls.mjs <base url> models stream:<text> whole:<text> refused:<text> …
import OpenAI from "openai";

const [baseURL, ...steps] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const print = (line) => console.log(JSON.stringify(line));
const said = (content) => ({ model: "echo", messages: [{ role: "user", content }] });

for (const step of steps) {
  const [verb, text] = step.split(/:(.*)/s);
  try {
    if (verb === "models") print({ step: verb, models: (await client.models.list()).data.map(({ id }) => id) });
    if (verb === "stream") {
      const stream = await client.chat.completions.create({ ...said(text), stream: true });
      let content = "";
      let finish = null;
      for await (const { choices } of stream) {
        content += choices[0].delta.content ?? "";
        finish = choices[0].finish_reason ?? finish;
      }
      print({ step: verb, content, finish });
    }
    if (verb === "whole") {
      const { choices, usage } = await client.chat.completions.create(said(text));
      print({ step: verb, content: choices[0].message.content, usage: usage ?? null });
    }
    if (verb === "refused") await client.chat.completions.create({ ...said(text), n: 2 });
  } catch (error) {
    print({ step: verb, error: error.constructor.name, status: error.status ?? null, code: error.code, param: error.param });
  }
}
process.exit(0);
