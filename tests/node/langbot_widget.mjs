// Lets two visitors chat through a widget in Chromium, and prints what each sees after every step.
//   node langbot_widget.mjs <chromium> <page> own|stock <image> <screenshot>
import { chromium } from "playwright-core";

const [program, url, kind, image, screenshot] = process.argv.slice(2);
const widgets = {
  own: {
    host: "#trunkline-chat", open: "#toggle", input: "textarea", file: "input[type=file]", log: "#log",
    message: "#log .m", like: ".vote button", reset: "#reset", ready: "#dot.on", preview: "#picked img",
  },
  stock: {
    host: "#langbot-widget-root", open: ".lb-bubble", input: ".lb-input", file: "input[type=file]",
    log: ".lb-messages", message: ".lb-msg-bubble", like: ".lb-act-btn[title='Like'], .lb-act-btn:nth-of-type(2)",
    reset: ".lb-header-btn", ready: ".lb-status-dot.lb-connected, .lb-status-dot.connected, .lb-status-dot",
    preview: ".lb-img-preview",
  },
};
const names = widgets[kind];
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
const problems = [];
const print = (line) => console.log(JSON.stringify({ ...line, problems }));

async function visit(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(Number(process.env.PATIENCE_MS ?? 30_000));
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("dialog", (dialog) => problems.push(`dialog ${dialog.message()}`) && dialog.dismiss());
  await page.goto(url);
  await open(page);
  return page;
}

async function open(page) {
  await page.click(`${names.host} ${names.open}`);
  await page.waitForSelector(`${names.host} ${names.ready}`);
}

const messages = (page) =>
  page.$$eval(`${names.host} ${names.message}`, (all) =>
    all.map((each) => {
      const copy = each.cloneNode(true);
      copy.querySelectorAll("button, .vote, .lb-msg-actions").forEach((button) => button.remove());
      return copy.textContent.trim();
    }));

async function say(page, text) {
  await page.fill(`${names.host} ${names.input}`, text);
  // The stock widget drops what is sent before it is connected.
  await page.waitForTimeout(50);
  await page.press(`${names.host} ${names.input}`, "Enter");
}

async function shows(page, text) {
  await page.waitForFunction(
    ([host, log, text]) => document.querySelector(host).shadowRoot.querySelector(log).textContent.includes(text),
    [names.host, names.log, text],
  );
}

const ann = await browser.newContext({ viewport: { width: 900, height: 700 } });
const bob = await browser.newContext();
const page = await visit(ann);
const other = await visit(bob);
const connected = page.waitForResponse((response) => response.url().includes("/feedback"));
for (const [who, text] of [[page, "alpha beta"], [other, "gamma <img src=x onerror=alert(1)>"]]) {
  // Sent again until the socket is open: neither widget queues.
  for (let sent = false; !sent; ) {
    await say(who, text);
    sent = (await who.inputValue(`${names.host} ${names.input}`)) === "";
  }
}
await shows(page, "re: alpha beta");
await shows(other, "re: gamma");
print({ step: "chatted", ann: await messages(page), bob: await messages(other) });

await page.setInputFiles(`${names.host} ${names.file}`, image);
await page.waitForSelector(`${names.host} ${names.preview}`);
await say(page, "a picture");
await shows(page, "re: a picture");
print({ step: "image", images: await page.$$eval(`${names.host} ${names.message} img`, (all) => all.length || 0) });

if (kind === "own") {
  await page.evaluate(() => {
    const [name, session] = Object.entries(localStorage)[0];
    const bot = name.replace("trunkline-chat:http", "ws");
    const socket = new WebSocket(`${bot}/ws/connect?session_id=${session}`);
    const odd = [null, "text", 5, { type: "Image", base64: "javascript:alert(1)" }, { type: "Plain", text: "odd" }];
    socket.onmessage = () => socket.close();
    socket.onopen = () => socket.send(JSON.stringify({ type: "message", message: odd }));
  });
  await shows(page, "re: odd");
}

await page.locator(`${names.host} ${names.like}`).first().click({ force: true });
const feedback = await connected;
print({ step: "feedback", status: feedback.status(), answer: await feedback.json() });
await page.screenshot({ path: screenshot });

await page.reload();
await open(page);
await shows(page, "re: a picture");
print({ step: "reloaded", ann: await messages(page) });

await page.locator(`${names.host} ${names.reset}`).first().click();
await page.waitForFunction(
  ([host, message]) => document.querySelector(host).shadowRoot.querySelectorAll(message).length === 0,
  [names.host, names.message.replace(/^#log /, "")],
);
print({ step: "reset", ann: await messages(page), bob: await messages(other) });
await browser.close();
process.exit(0);
