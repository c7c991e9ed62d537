-- What a stream is. KEYS: meta, log. ARGV: the replica that has readers of it, or '' (its producer must not abandon a
-- live stream that has), '1' where a reader has just come (it is counted, for the stream's line in its producer's log),
-- for how many ms its readers there want it to go on unread or '', perhaps the owner who asks.
-- Answers nil where there is no such stream, and after the same commands where there is but of another owner; else
-- {top, outcome or '', ms of lease left (below 0: lapsed), 1 where the log can still hold its events, born ms, ended ms,
-- fence, api, owner, upstream, model, replica, usage, headers, the end mark's content or '', 'orphan' or '' where no
-- request can join it, how its upstream is come back to or '', where that stands or '', for how many ms at most its
-- readers want it to go on unread or -1}.
local m = redis.call('HMGET', KEYS[1], 'top', 'end', 'lease', 'born', 'ended', 'fence', 'api', 'owner', 'upstream',
  'model', 'replica', 'usage', 'headers', 'orphan', 'abandon', 'leg', 'at')
local now = redis.call('TIME')
local events = redis.call('EXISTS', KEYS[2])
if not m[1] or (ARGV[4] and ARGV[4] ~= m[8]) then
  return false
end
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
if ARGV[1] ~= '' and not m[2] then
  local seen = string.format('%d', ms)
  redis.call('HSET', KEYS[1], 'seen', seen, 'r:' .. ARGV[1], seen)
  if ARGV[3] ~= '' and tonumber(ARGV[3]) > tonumber(m[15] or -1) then
    redis.call('HSET', KEYS[1], 'abandon', ARGV[3])
  end
  if ARGV[2] == '1' then
    redis.call('HINCRBY', KEYS[1], 'visits', 1)
  end
end
local kept = (m[1] == '0' and not m[2]) and 1 or events
local mark = m[2] and redis.call('XRANGE', KEYS[2], m[1] .. '-1', m[1] .. '-1')[1]
return { tonumber(m[1]), m[2] or '', m[3] - ms, kept, tonumber(m[4]), tonumber(m[5] or 0), m[6], m[7], m[8], m[9],
  m[10], m[11] or '', m[12] or '', m[13] or '', mark and mark[2][2] or '', m[14] and 'orphan' or '',
  m[16] or '', m[17] or '', tonumber(m[15] or -1) }
