-- Renew the leases of several streams. KEYS: their meta hashes. ARGV: lease ms, then a fence for each.
-- Answers, for each: {code, ms since a reader on another replica was last seen}; codes as in append.lua.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local out = {}
for k = 1, #KEYS do
  local m = redis.call('HMGET', KEYS[k], 'fence', 'seen')
  if not m[1] then
    out[k] = { 4, 0 }
  elseif m[1] ~= ARGV[k + 1] then
    out[k] = { 2, 0 }
  else
    redis.call('HSET', KEYS[k], 'lease', string.format('%d', ms + ARGV[1]))
    out[k] = { 1, ms - m[2] }
  end
end
return out
