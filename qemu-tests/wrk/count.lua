-- For wrk (https://github.com/wg/wrk, SCRIPTING): counts answers by what they mean to a
-- person who is logged in, and says it as JSON. 200 is the page, 302 leads to the login:
-- the session is gone. Anything else is neither, as 503 while a service is away.

local threads = {}

function setup(thread)
	table.insert(threads, thread)
end

function init()
	good, out, bad, first, last = 0, 0, 0, 0, 0 -- globals, which done() can read
end

function response(status)
	if status == 200 then
		good = good + 1
		return
	end
	if status == 302 then
		out = out + 1
		return
	end
	bad = bad + 1
	last = os.time()
	if first == 0 then
		first = last
	end
end

function done(summary, latency)
	local sum = { good = 0, out = 0, bad = 0, first = 0, last = 0 }
	for _, thread in ipairs(threads) do
		sum.good = sum.good + thread:get("good")
		sum.out = sum.out + thread:get("out")
		sum.bad = sum.bad + thread:get("bad")
		local first = thread:get("first")
		if first > 0 and (sum.first == 0 or first < sum.first) then
			sum.first = first
		end
		sum.last = math.max(sum.last, thread:get("last"))
	end
	local errors = summary.errors
	io.write(string.format(
		'\nCOUNTED {"seconds": %.1f, "good": %d, "logged_out": %d, "bad": %d, "bad_seconds": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d, "p50_ms": %.1f, "p99_ms": %.1f, "max_ms": %.1f}\n',
		summary.duration / 1e6, sum.good, sum.out, sum.bad, sum.first > 0 and sum.last - sum.first + 1 or 0,
		errors.connect, errors.read, errors.write, errors.timeout,
		latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
