-- Renew the leases of several streams. KEYS: their meta hashes. ARGV: lease ms, the replica that produces them,
-- then a fence for each. One above the fence that is there is of who took the stream over: the store has lost that, and
-- is told it again.
-- Answers, for each: {code, top, 1 where another replica has readers of it, ms since a reader elsewhere was last known or
-- -1 where none ever was, for how many ms at most such readers want it to go on unread or -1}; codes as in append.lua. A replica that has said so last more than a lease ago is lost, and its readers with it.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local lease = tonumber(ARGV[1])
local out = {}
for k = 1, #KEYS do
  local m = redis.call('HMGET', KEYS[k], 'fence', 'top', 'seen', 'abandon')
  if not m[1] then
    out[k] = { 4, 0, 0, -1, -1 }
  elseif m[1] ~= ARGV[k + 2] and tonumber(m[1]) > tonumber(ARGV[k + 2]) then
    out[k] = { 2, tonumber(m[2]), 0, -1, -1 }
  else
    local ago, present = ms - m[3], 0
    if ago < lease then
      local fields = redis.call('HGETALL', KEYS[k])
      for i = 1, #fields, 2 do
        if string.sub(fields[i], 1, 2) == 'r:' and ms - fields[i + 1] < lease then
          present = 1
        end
      end
    end
    if m[1] ~= ARGV[k + 2] then
      redis.call('HSET', KEYS[k], 'fence', ARGV[k + 2], 'replica', ARGV[2])
    end
    redis.call('HSET', KEYS[k], 'lease', string.format('%d', ms + lease))
    out[k] = { 1, tonumber(m[2]), present, m[3] == '0' and -1 or ago, tonumber(m[4] or -1) }
  end
end
return out
