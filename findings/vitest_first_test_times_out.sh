#!/usr/bin/env bash
# Vitest 5.1.2, fake timers with the tick mode "nextTimerAsync", default pool.
#
# Guess: the mode advances the fake clock to the next timer whenever the test waits, so a
# request to a real server may take a few fake seconds too many, and a response that takes
# 0.1 s of real time is far below fetch's timeout of 300 s.
#
# What happens: in the first test of a file, each fetch whose response takes 0.1 s rejects
# with UND_ERR_HEADERS_TIMEOUT, because fetch's own timers run on the fake clock, which
# passes 300 s while the response is under way. The same test, repeated in the same file,
# succeeds. With --pool=vmThreads, both succeed.
#
# Versions: vitest 5.1.2, Node 24.21.0 (npm package "node"). Date: 2026-11-29.
# Source: measured (8 of 8 runs).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund vitest@5.1.2 node@24.21.0 >/dev/null 2>&1
export PATH="$folder/node_modules/node/bin:$folder/node_modules/.bin:$PATH" NO_COLOR=1

cat >slow.test.mjs <<'JS'
import { createServer } from "node:http";
import { test, vi } from "vitest";

const realSetTimeout = setTimeout;
for (const name of ["first", "second"]) {
  test(name, async () => {
    const server = createServer((_, response) => realSetTimeout(() => response.end("ok"), 100));
    await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
    vi.useFakeTimers();
    vi.setTimerTickMode("nextTimerAsync");
    const result = await fetch(`http://127.0.0.1:${server.address().port}/`).then(
      (response) => response.text(),
      (error) => error.cause.code,
    );
    vi.useRealTimers();
    console.log(`FOUND ${name}: ${result}`);
    server.closeAllConnections();
    server.close();
  });
}
JS

check() {
    seen=$(vitest run "$@" slow.test.mjs 2>&1 | grep -o 'FOUND .*' | tr '\n' ';')
    echo "vitest run $*: $seen"
}
check
[ "$seen" = "FOUND first: UND_ERR_HEADERS_TIMEOUT;FOUND second: ok;" ]
check --pool=vmThreads
[ "$seen" = "FOUND first: ok;FOUND second: ok;" ]

# Output seen:
# vitest run : FOUND first: UND_ERR_HEADERS_TIMEOUT;FOUND second: ok;
# vitest run --pool=vmThreads: FOUND first: ok;FOUND second: ok;
