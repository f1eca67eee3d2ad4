-- POST /api/v1/embed with varied texts, for wrk (https://github.com/wg/wrk).
--
--   wrk -t2 -c10 -d20s -s scripts/wrk-embed.lua http://127.0.0.1:8080
--
-- At the end it prints p50, p95 and p99, and what failed: answers other than 200, and connections, reads, writes and requests
-- that failed or took too long. AKIDB_WRK_JSON=1 prints the same as one line of JSON.

local subjects = { "The baker", "A retired pilot", "Our neighbour", "The museum", "Every student", "The old ferry" }
local verbs = { "repaired", "forgot", "sold", "described", "photographed", "carried" }
local objects = { "the lantern", "a map of the valley", "two violins", "the broken turbine", "an unsigned treaty" }
local places = { "near the harbour", "in the first snow", "before the tribunal", "under the northern bridge" }

local threads = {}

function setup(thread)
   thread:set("number", #threads + 1)
   table.insert(threads, thread)
end

function init(args)
   wrk.method = "POST"
   wrk.path = "/api/v1/embed"
   wrk.headers["content-type"] = "application/json"
   count, busy, refused = 0, 0, 0
end

local function one_of(list, seed)
   return list[seed % #list + 1]
end

function request()
   count = count + 1
   local seed = count * 31 + number * 7919
   local text = string.format("%s %s %s %s, entry %d of list %d.", one_of(subjects, seed), one_of(verbs, math.floor(seed / 7)),
      one_of(objects, math.floor(seed / 11)), one_of(places, math.floor(seed / 13)), count, number)
   return wrk.format(nil, nil, nil, '{"texts":["' .. text .. '"]}')
end

-- Only what is not 200 is looked at: to read every answer would cost more than it tells.
function response(status, headers, body)
   if status ~= 200 then
      refused = refused + 1
      if string.find(string.lower(body), "service is busy", 1, true) then
         busy = busy + 1
      end
   end
end

function done(summary, latency, requests)
   local busy_answers, refusals = 0, 0
   for _, thread in ipairs(threads) do
      busy_answers = busy_answers + thread:get("busy")
      refusals = refusals + thread:get("refused")
   end
   local errors = summary.errors
   local broken = errors.connect + errors.read + errors.write + errors.timeout
   -- A request that failed is in no other count; one that was answered too late is in both.
   local total = summary.requests + errors.connect + errors.read + errors.write
   local failed = broken + refusals
   local succeeded = math.max(0, total - failed)
   local seconds = summary.duration / 1e6
   local p50, p95, p99 = latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000
   if os.getenv("AKIDB_WRK_JSON") then
      print(string.format(
         '{"requests":%d,"failed":%d,"busy":%d,"seconds":%.3f,"requests_per_second":%.3f,"p50_ms":%.3f,"p95_ms":%.3f,"p99_ms":%.3f}',
         total, failed, busy_answers, seconds, succeeded / seconds, p50, p95, p99))
      return
   end
   print(string.format("p50 %.1f ms, p95 %.1f ms, p99 %.1f ms", p50, p95, p99))
   print(string.format("%d requests in %.1f s: %d succeeded (%.2f %%), %.1f per second", total, seconds, succeeded,
      100 * succeeded / math.max(1, total), succeeded / seconds))
   print(string.format("failed: %d (%d refused, %d connect, %d read, %d write, %d timeout); \"Service is busy\": %d", failed, refusals,
      errors.connect, errors.read, errors.write, errors.timeout, busy_answers))
end
