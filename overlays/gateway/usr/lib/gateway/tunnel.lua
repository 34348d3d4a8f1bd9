-- Reads the ticket that a tunnel begins with, and has a broker redeem it (HAProxy Lua API
-- 3.0, "Channel class", "HTTPClient class"). The broker names a desktop; the gateway
-- leads to those of its own plan only, so that no answer can lead elsewhere.

local RUN = os.getenv("GATEWAY_RUN") or "/run/gateway"
local MOST = 1024 -- characters of a ticket

core.register_action("redeem", { "tcp-req" }, function(txn)
	local line = txn.req:getline()
	if not line then
		return
	end
	local ticket = line:match("^([%w_.-]+)\r?\n$")
	if not ticket or #ticket > MOST then
		txn:Info("no ticket")
		return
	end
	local answer = core.httpclient():post {
		url = "http://brokers.slipway.internal/api/redeem",
		dst = "unix@" .. RUN .. "/brokers.sock",
		headers = { ["content-type"] = { "application/json" } },
		-- Nothing in a ticket needs to be escaped, see above.
		body = '{"ticket": "' .. ticket .. '"}',
		timeout = 5000,
	}
	if not answer or answer.status ~= 200 then
		txn:Info("the ticket is not good (" .. tostring(answer and answer.status) .. ")")
		return
	end
	local desktop = answer.body:match('"desktop": "([a-z0-9-]+)"')
	if desktop and core.backends["desktop-" .. desktop] then
		txn:set_var("txn.desktop", desktop)
	end
end, 0)
