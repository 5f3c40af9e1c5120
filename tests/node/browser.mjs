// Opens a page in Chromium and takes the steps named by its arguments; prints each when it is done.
//   node browser.mjs <chromium> <url> type:<text> answer:<text> status:<status> click:<id> reachable:<url> reload
//     screenshot:<file>
import { chromium } from "playwright-core";

const [program, url, ...steps] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 800, height: 500 } });
const problems = [];
page.on("pageerror", (error) => problems.push(String(error)));
const print = (line) => console.log(JSON.stringify(line));
page.setDefaultTimeout(Number(process.env.PATIENCE_MS ?? 30_000));

await page.goto(url);
for (const step of steps) {
  const [verb, argument] = step.split(/:(.*)/s);
  if (verb === "type") {
    await page.fill("input", argument);
    await page.press("input", "Enter");
  }
  if (verb === "answer") {
    await page.waitForFunction((text) => document.querySelector("p.assistant:last-of-type")?.textContent === text, argument);
  }
  if (verb === "status") {
    await page.waitForFunction((status) => document.querySelector("#status")?.textContent === status, argument);
  }
  if (verb === "click") await page.click(`#${argument}`);
  if (verb === "reachable") {
    while (!(await fetch(argument).catch(() => null))?.ok) await page.waitForTimeout(50);
  }
  if (verb === "reload") await page.reload();
  if (verb === "screenshot") await page.screenshot({ path: argument });
  const paragraphs = await page.$$eval("p", (all) => all.map((each) => [each.className, each.textContent]));
  print({ step, paragraphs, status: await page.textContent("#status").catch(() => ""), problems });
}
await browser.close();
process.exit(0);
