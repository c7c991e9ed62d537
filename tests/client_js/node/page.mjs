// Opens a page in a headless browser and prints what it left in `window.seen`: {"url": …, "browser": …, "profile": …}

import { chromium } from "playwright-core";

const { url, browser: executablePath, profile } = JSON.parse(process.argv[2]);
const args = [
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const context = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  chromiumSandbox: false,
  args,
});
try {
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(url);
  await page.waitForFunction("window.seen !== undefined", null, { timeout: 45_000 });
  console.log(JSON.stringify({ seen: await page.evaluate("window.seen"), errors }));
} finally {
  await context.close();
}
