#!/usr/bin/env bash
# fetch of Deno 2.9.6 and Bun 1.4.5, when the server has read a request on a kept-alive
# connection and closes the connection without a response.
#
# Guess: like Node's fetch, they reject; or they repeat a GET, which is safe to repeat, and
# never a POST, because the server may already have acted on it (RFC 9110, 9.2.2).
#
# What happens: Deno sends the POST again, with its body, and the caller sees 200. Bun
# repeats GET, PUT and DELETE but not POST. Node repeats nothing. So a server that counts
# the jobs that a client creates may count one too many with Deno.
#
# Versions: deno 2.9.6, bun 1.4.5, Node 24.21.0 (npm packages). Date: 2026-11-29.
# Source: measured. Public threads on neighbouring cases: denoland/deno issue 35610 (a fresh
# connection, closed), oven-sh/bun pull request 28708 (POST no longer repeated).
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund deno@2.9.6 bun@1.4.5 node@24.21.0 >/dev/null 2>&1
export PATH="$folder/node_modules/.bin:$PATH" NO_COLOR=1

# The first request gets a response. The next one is read, then the connection is closed.
cat >server.mjs <<'JS'
import { createServer } from "node:http";
let dropped = false;
const server = createServer((request, response) => {
  request.resume().on("end", () => {
    console.log(request.method);
    if (request.url === "/second" && !dropped) {
      dropped = true;
      request.socket.destroy();
    } else response.end("ok");
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
cat >client.mjs <<'JS'
const [url, method] = globalThis.Deno?.args ?? process.argv.slice(2);
await (await fetch(`${url}/first`)).text();
await new Promise((done) => setTimeout(done, 100));
const body = method === "GET" ? undefined : "job";
const result = await fetch(`${url}/second`, { method, body }).then((r) => r.status, () => "an error");
console.log(`the caller sees ${result}`);
JS

for client in "node client.mjs" "bun client.mjs" "deno run --allow-net client.mjs"; do
    for method in GET POST; do
        rm -f requests
        node server.mjs >requests &
        server=$!
        for _ in $(seq 100); do [ ! -s requests ] || break; sleep 0.05; done
        result=$(timeout 20 $client "http://127.0.0.1:$(head -1 requests)" $method)
        kill $server
        wait $server 2>/dev/null || true
        echo "${client%% *} $method: $result, the server saw $(tail -n +3 requests | wc -l) of it"
    done
done | tee seen
cat >expected <<'TXT'
node GET: the caller sees an error, the server saw 1 of it
node POST: the caller sees an error, the server saw 1 of it
bun GET: the caller sees 200, the server saw 2 of it
bun POST: the caller sees an error, the server saw 1 of it
deno GET: the caller sees 200, the server saw 2 of it
deno POST: the caller sees 200, the server saw 2 of it
TXT
diff expected seen

# Output seen: the six lines above.
