// Chats with a pipeline in LangBot's web client, in Chromium: its page is served for the edge's own origin, its
// administration is answered here, and chat and files go to the edge. Prints what the page shows, and each response.
//   node langbot_web.mjs <chromium> <edge> <folder of the client> <pipeline> <workspace> <token> <image> <screenshot>
import { chromium } from "playwright-core";
import { readFile } from "node:fs/promises";
import { extname, join } from "node:path";

const [program, edge, folder, pipeline, workspace, token, image, screenshot] = process.argv.slice(2);
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".webp": "image/webp", ".svg": "image/svg+xml" };
const IS_OURS = /^\/api\/v1\/(files\/|pipelines\/[^/]+\/ws\/)/;
const named = { uuid: workspace, name: "Home", type: "personal", status: "active" };
const current = {
  workspace: named,
  membership: { uuid: "m1", role: "developer", status: "active" },
  permissions: ["runtime.operate"],
  entitlements: {},
};
const nothing = Object.fromEntries(
  ["bots", "bases", "plugins", "servers", "skills", "extensions", "tasks", "models", "providers", "knowledge_bases", "configs", "adapters", "tools", "engines", "parsers", "apikeys", "webhooks"].map((name) => [name, []]),
);
const answers = {
  "/api/v1/workspaces/bootstrap": { workspaces: [current] },
  "/api/v1/workspaces/current": current,
  "/api/v1/user/info": { user: "admin@example.com", account_type: "local", has_password: true },
  "/api/v1/system/info": { version: "v4.10.8", edition: "community", wizard_status: "completed", cloud_service_url: "", limitation: {} },
  "/api/v1/pipelines": { pipelines: [{ uuid: pipeline, name: "Helper", description: "", emoji: "", is_default: true, updated_at: "2026-01-01T00:00:00" }] },
  [`/api/v1/pipelines/${pipeline}`]: { pipeline: { uuid: pipeline, name: "Helper", description: "", config: {}, is_default: true } },
};

const print = (line) => console.log(JSON.stringify(line));
const browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox", "--disable-features=LocalNetworkAccessChecks"] });
const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, locale: "en-US" });
await context.addInitScript(
  ([token, workspace]) => {
    if (sessionStorage.getItem("seeded")) return;
    sessionStorage.setItem("seeded", "1");
    localStorage.setItem("token", token);
    localStorage.setItem("userEmail", "admin@example.com");
    localStorage.setItem("langbot_active_workspace_uuid", workspace);
    localStorage.setItem("langbot_language", "en-US");
  },
  [token, workspace],
);
const responses = [];
await context.route("**/*", async (route) => {
  const { pathname, origin } = new URL(route.request().url());
  if (origin !== edge) return route.abort();
  if (IS_OURS.test(pathname)) return route.continue();
  if (pathname.startsWith("/api/")) {
    return route.fulfill({ json: { code: 0, msg: "ok", data: answers[pathname] ?? nothing } });
  }
  const body = await readFile(join(folder, pathname)).catch(() => readFile(join(folder, "index.html")));
  await route.fulfill({ body, contentType: TYPES[extname(pathname)] ?? "text/html" });
});
const page = await context.newPage();
page.setDefaultTimeout(Number(process.env.PATIENCE_MS ?? 30_000));
page.on("pageerror", (error) => print({ problem: String(error) }));
page.on("response", (response) => {
  const { pathname, origin } = new URL(response.url());
  if (origin === edge && IS_OURS.test(pathname)) responses.push([response.request().method(), pathname, response.status()]);
});

await page.goto(`${edge}/home/pipelines?id=${pipeline}`);
await page.getByRole("tab").filter({ hasText: /Debug|调试/ }).click();
for (const session of ["person", "group"]) {
  if (session === "group") {
    // The lamp of the former session stays green for a moment, and what is sent meanwhile is dropped.
    const connecting = page.waitForEvent("websocket");
    await page.locator("div.w-14 button").nth(1).click();
    await (await connecting).waitForEvent("framereceived");
  }
  await page.locator("span.bg-green-500").waitFor();
  const input = page.locator("input:not([type=file])").last();
  await input.waitFor();
  const chooser = page.locator("input[type=file]").last();
  await chooser.setInputFiles(image);
  await input.fill(`to ${session}`);
  await input.press("Enter");
  await page.getByText(`re: to ${session}`).first().waitFor();
  print({ step: session, images: await page.locator("img[alt=Image]").evaluateAll((all) => all.map((each) => each.src.slice(0, 22))) });
}
await page.screenshot({ path: screenshot });
print({ step: "done", responses, url: page.url(), token: await page.evaluate(() => localStorage.getItem("token")) });
await browser.close();
process.exit(0);
