-- What wrk sends, and what it says at the end: one JSON object, latencies in microseconds.
-- wrk ... -- BODY_FILE [HEADER VALUE]...

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   file:close()
   for place = 2, #args, 2 do
      wrk.headers[args[place]] = args[place + 1]
   end
   prepared = wrk.format()
end

function request()
   return prepared
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "duration_us": %d, "refused": %d, "broken": %d, "p50_us": %d, "p99_us": %d}\n',
      summary.requests, summary.duration, errors.status,
      errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
