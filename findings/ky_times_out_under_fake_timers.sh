#!/usr/bin/env bash
# ky 2.1.0 under the auto-advancing fake timers of Vitest 5.1.2.
#
# Guess: ky is a thin wrapper of fetch. With --pool=vmThreads and the tick mode
# "nextTimerAsync", fetch is exact beside a real server, so ky is, too.
#
# What happens: every request of ky rejects with TimeoutError at once, even if the server
# responds without delay. ky's default timeout of 10 s is a setTimeout, and the mode fires
# it before the response has come over the real network. `timeout: false` prevents it.
# In the default pool, which is the wrong one for fetch, a single request of ky succeeds.
#
# Versions: ky 2.1.0, vitest 5.1.2, Node 24.21.0 (npm package "node"). Date: 2026-11-29.
# Source: measured; the default timeout is documented in ky's readme, under "timeout".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund vitest@5.1.2 ky@2.1.0 node@24.21.0 >/dev/null 2>&1
export PATH="$folder/node_modules/node/bin:$folder/node_modules/.bin:$PATH" NO_COLOR=1

cat >ky.test.mjs <<'JS'
import { createServer } from "node:http";
import ky from "ky";
import { test, vi } from "vitest";

test("ky and fetch", async () => {
  const server = createServer((_, response) => response.end("ok"));
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const url = `http://127.0.0.1:${server.address().port}/`;
  vi.useFakeTimers();
  vi.setTimerTickMode("nextTimerAsync");
  const outcome = (promise) => promise.then((response) => response.text()).catch((error) => error.name);
  const results = [await outcome(fetch(url)), await outcome(ky(url)), await outcome(ky(url, { timeout: false }))];
  vi.useRealTimers();
  console.log(`FOUND fetch: ${results[0]}, ky: ${results[1]}, ky without timeout: ${results[2]}`);
  server.closeAllConnections();
  server.close();
});
JS

seen=$(vitest run --pool=vmThreads ky.test.mjs 2>&1 | grep -o 'FOUND .*')
echo "$seen"
[ "$seen" = "FOUND fetch: ok, ky: TimeoutError, ky without timeout: ok" ]

# Output seen:
# FOUND fetch: ok, ky: TimeoutError, ky without timeout: ok
