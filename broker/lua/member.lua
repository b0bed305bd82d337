-- What a node does with a member of a gang that it holds; see shared/members.lua.

-- member_start(id, token, started ms, STARTED result or '', result expires s, address) -> 1, or 0 when the token is stale
-- Main's start is the job's: the others may start, and are told its address.
-- Keys: job (the member's, the gang's), result (and its channel); channel control.
register('member_start', function(_, argv)
  local id, member = argv[1], K.job(argv[1])
  local m = redis.call('HMGET', member, 'token', 'member_of', 'node')
  if m[1] ~= argv[2] then return 0 end
  redis.call('HSET', member, 'state', 'RUNNING', 'started', argv[3])
  local gang = m[2]
  local h = redis.call('HMGET', K.job(gang), 'main', 'gang', 'state', 'back', 'queue')
  if id ~= member_id(gang, h[1]) or ended(h[3]) or h[4] then return 1 end
  for index = 0, tonumber(h[2]) - 1 do
    local other = member_id(gang, index)
    local o = redis.call('HMGET', K.job(other), 'token', 'node')
    if other ~= id and o[1] then
      redis.call('HSET', K.job(other), 'go', argv[6])
      redis.call('PUBLISH', K.control, o[2] .. ' ' .. other)
    end
  end
  become(gang, 'RUNNING', 'started', argv[3], 'node', m[3], 'address', argv[6])
  if argv[4] ~= '' then
    local key = K.result(gang)
    if tonumber(argv[5]) > 0 then redis.call('SET', key, argv[4], 'EX', argv[5]) else redis.call('SET', key, argv[4]) end
    redis.call('PUBLISH', key, argv[4])
  end
  return 1
end)

local function pairs_of(told)
  local fields = {}
  for k, v in pairs(told) do fields[#fields + 1] = k; fields[#fields + 1] = v end
  return fields
end

-- How a member's own record ends: what its node says, and of a halted one what became of the gang.
local function leave_member(id, gang, node, token, state, h, told)
  local fields = {'settled', token}
  for _, name in ipairs({'reason', 'ended', 'started', 'exit_code', 'log'}) do
    if told[name] and told[name] ~= cjson.null then fields[#fields + 1] = name; fields[#fields + 1] = told[name] end
  end
  if h.halt then
    state = h.back and 'RUNNABLE' or ended(h.state) and h.state or state
  end
  member_over(id, gang, node, state, fields)
end

local function look(id, token)
  local m = redis.call('HMGET', K.job(id), 'token', 'settled', 'node', 'member_of', 'halt')
  if m[2] == token then return 2 end
  if m[1] ~= token then return 0 end
  local h = redis.call('HMGET', K.job(m[4]), 'main', 'gang', 'state', 'back')
  return 1, m[4], m[3], {main = id == member_id(m[4], h[1]), count = tonumber(h[2]), state = h[3] or nil,
    back = h[4] or nil, halt = m[5]}
end

-- member_settle(id, token, state, fields (JSON object of strings), attempt (JSON), retention s, effects …)
--   -> 1 written, 2 this same call had been written before, 0 the token is stale: nothing is written
-- Main's end is the job's, with all that follows, unless the gang goes back just then. Any other's is its own.
-- Keys: as of settle.
register('member_settle', function(_, argv)
  local id, token = argv[1], argv[2]
  local answer, gang, node, h = look(id, token)
  if answer ~= 1 then return answer end
  local told = cjson.decode(argv[4])
  settle_blobs(id .. ' ' .. token, told.blobs)
  told.blobs = nil
  if h.main and not h.back and not ended(h.state) then
    apply(argv, 7)
    add_attempt(gang, argv[5])
    end_record(gang, argv[3], pairs_of(told), argv[6])
    h.state = argv[3]
  end
  add_attempt(id, argv[5])
  leave_member(id, gang, node, token, argv[3], h, told)
  return 1
end)

-- member_giveback(id, token, counter ('used', 'interruptions' or ''), attempt (JSON) or '', fields (JSON), delay ms)
--   -> 1, 2 (had been done), 0 (stale)
-- Main's sends the whole gang back, as does any before main runs: to its old place, not before the delay is over. Any
-- other member is over.
-- Keys: as of giveback; channel control.
register('member_giveback', function(_, argv)
  local id, token = argv[1], argv[2]
  local answer, gang, node, h = look(id, token)
  if answer ~= 1 then return answer end
  settle_blobs(id .. ' ' .. token, cjson.decode(argv[5]).blobs)
  if not h.back and not ended(h.state) and (h.main or h.state == 'STARTING') then
    local reason = cjson.decode(argv[5]).reason or 'a node gave it back'
    add_attempt(gang, argv[4])
    if argv[3] ~= '' then redis.call('HINCRBY', K.job(gang), argv[3], 1) end
    redis.call('HSET', K.job(gang), 'reason', reason)
    return_gang(gang, h.count, nil, tonumber(argv[6]), reason)
    h.back, h.halt = true, true
  end
  add_attempt(id, argv[4])
  local told = argv[4] ~= '' and cjson.decode(argv[4]) or {}
  told.reason = cjson.decode(argv[5]).reason or told.reason
  for _, ms in ipairs({'started', 'ended'}) do
    if tonumber(told[ms]) then told[ms] = num(told[ms]) end
  end
  leave_member(id, gang, node, token, 'FAILED', h, told)
  return 1
end)
