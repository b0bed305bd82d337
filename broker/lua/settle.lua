-- settle(width, id, token, state, fields (JSON object of strings), attempt (JSON), retention s, effects …, width, id, …)
--   -> for each 1 written, 2 this same end had been written before, 0 the token is stale: nothing is written; or an
--   error, which stops none of the others
-- The ends of one job or of several. width: how many arguments are this job's, from its id on. A field `blobs` is for
-- shared/blobs.lua, and not the record's.
-- Keys: blobs_until, blobs_made, blobs_pinned, job, node_jobs, leases, expiring, outbox, dead, those of the effects, dependants and those of their moves; what
-- the job held: holds, consumable, gates, policies, the shares'.
local function settle(argv, i, last, releases)
  local id, token, job = argv[i], argv[i + 1], K.job(argv[i])
  local h = redis.call('HMGET', job, 'token', 'settled', 'node')
  if h[2] == token then return 2 end
  if h[1] ~= token then return 0 end
  local fields, told = {'settled', token}, cjson.decode(argv[i + 3])
  settle_blobs(id .. ' ' .. token, told.blobs)
  told.blobs = nil
  for k, v in pairs(told) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  apply(argv, i + 6, last)
  add_attempt(id, argv[i + 4])
  end_record(id, argv[i + 2], fields, argv[i + 5], releases)
  unlease(id, h[3], redis.call('HEXISTS', job, 'started') == 0)
  return 1
end

register('settle', function(_, argv)
  local starts, out, i = {}, {}, 1
  while i <= #argv do
    starts[#starts + 1] = i + 1
    i = i + 1 + tonumber(argv[i])
  end
  local releases = math.max(1, math.floor(AT_ONCE / #starts))
  for n, first in ipairs(starts) do
    local ok, answer = pcall(settle, argv, first, first - 1 + tonumber(argv[first - 1]), releases)
    out[n] = ok and answer or {err = type(answer) == 'table' and answer.err or tostring(answer)}
  end
  return out
end)

-- giveback(id, token, counter ('used', 'interruptions' or ''), attempt (JSON) or '', fields (JSON), delay ms)
--   -> 1, 2 (had been done), 0 (stale)
-- Back to its old place in the queue, not before the delay is over: a retry (it has used an attempt), an interruption,
-- or a drain (neither).
-- Keys: job, node_jobs, leases, result, delayed, expiring, class, heads, counts, demands, outbox, and what it held.
register('giveback', function(_, argv)
  local id, token, job = argv[1], argv[2], K.job(argv[1])
  local h = redis.call('HMGET', job, 'token', 'returned', 'node')
  if h[2] == token then return 2 end
  if h[1] ~= token then return 0 end
  add_attempt(id, argv[4])
  if argv[3] ~= '' then redis.call('HINCRBY', job, argv[3], 1) end
  if argv[3] == 'interruptions' then count_spot(id, h[3]) end
  local told = cjson.decode(argv[5])
  return_blobs(id, token, told.blobs)
  told.blobs = nil
  for k, v in pairs(told) do redis.call('HSET', job, k, v) end
  redis.call('HSET', job, 'returned', token)
  restore(id, h[3], nil, tonumber(argv[6]))
  return 1
end)
