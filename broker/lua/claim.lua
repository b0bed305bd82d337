-- claim(node, claim id, lease ms, mc, mem, gpu, disk, count, queue, …) -> {more, job, …}
-- A job is {id, token, attempt, doc, queue, created ms, interruptions}.
-- Up to `count` jobs that fit what is free, queues in the order given, most urgent class first. A repeated claim id
-- gets the answer of the first call. more = 1: looked at the bounded number of jobs and found none; ask again.
-- Keys: node, node_jobs, leases, reaper, job, class, heads, counts, demands, delayed, expiring, outbox.
local LOOKS = 32                               -- jobs looked at in coarse classes in one call

-- Where this node's walk through the coarse classes of a queue stopped: so every job is looked at in the end, however
-- many that do not fit stand before it. -> offset, class; nothing when no walk is under way. BEHIND: it is over, and waits
-- for those through the node's other queues; else they might never be over together, and the node would ask for ever.
local BEHIND = 'behind'
local function stopped_at(queue, free, node)
  local mark = redis.call('HGET', K.node(node), 'at:' .. queue)
  if not mark then return nil end
  if mark == BEHIND then return 0, BEHIND end
  local from, class = string.match(mark, '^(%d+) (.*)$')
  if fits(shape(class), free) and redis.call('ZSCORE', K.heads(queue), class) then return tonumber(from), class end
end

-- The first of `most` jobs of a coarse class that fits, and how many were looked at.
local function look_into(queue, class, from, most, free)
  local ids = redis.call('ZRANGE', K.class(queue, class), from, from + most - 1)
  local demands = #ids > 0 and redis.call('HMGET', K.demands(queue), unpack(ids))
  for i, id in ipairs(ids) do
    if not demands[i] or fits(shape(demands[i]), free) then return id end
  end
  return nil, #ids
end

-- One call walks LOOKS jobs on. A walk ends with a job that fits, or behind the last one: then there is none, and it is
-- noted in `over`.
local function pick(queue, free, node, over)
  local mark, left, walking, from, resume = 'at:' .. queue, LOOKS, false, 0, nil
  for _, class in ipairs(redis.call('ZRANGE', K.heads(queue), 0, CLASSES)) do
    local s = shape(class)
    if fits(s, free) then
      if s.exact then return redis.call('ZRANGE', K.class(queue, class), 0, 0)[1], class, left == 0 end
      if not walking then
        walking = true
        from, resume = stopped_at(queue, free, node)
      end
      if left > 0 and (not resume or resume == class) then
        from = resume and from or 0
        local id, looked = look_into(queue, class, from, left, free)
        if id then
          redis.call('HDEL', K.node(node), mark)
          return id, class
        end
        left, resume = left - looked, nil
        if left == 0 then redis.call('HSET', K.node(node), mark, from + looked .. ' ' .. class) end
      end
    end
  end
  if walking and left > 0 then over[#over + 1] = mark end
  return nil, nil, left == 0
end

-- The node is to ask again, or all walks that are over begin anew with its next question.
local function walks_over(node, over, again)
  for _, mark in ipairs(over) do
    if again then redis.call('HSET', K.node(node), mark, BEHIND) else redis.call('HDEL', K.node(node), mark) end
  end
end

local function repeated(node, claim)
  local last = redis.call('HMGET', K.node(node), 'claim', 'claimed')
  if last[1] ~= claim then return nil end
  local out = {0}
  for id in string.gmatch(last[2], '%S+') do
    local h = redis.call('HMGET', K.job(id), 'token', 'used', 'doc', 'queue', 'created', 'interruptions')
    if h[1] and string.match(h[1], '^%d+:(.*)$') == claim then
      out[#out + 1] = {id, h[1], (tonumber(h[2]) or 0) + 1, h[3] or doc_of(id), h[4], h[5], tonumber(h[6]) or 0}
    end
  end
  return out
end

register('claim', function(_, argv)
  local node, claim, lease = argv[1], argv[2], tonumber(argv[3])
  local free = {tonumber(argv[4]), tonumber(argv[5]), tonumber(argv[6]), tonumber(argv[7])}
  local again = repeated(node, claim)
  if again then return again end
  reap(lease, 8)
  local out, ids, more, over = {0}, {}, false, {}
  for i = 9, #argv do
    local queue = argv[i]
    due(queue, 8)
    local skips = 0
    while #ids < tonumber(argv[8]) and skips < 32 do
      local id, class, unfinished = pick(queue, free, node, over)
      more = more or unfinished
      if not id then break end
      local h = redis.call('HMGET', K.job(id), 'mc', 'mem', 'gpu', 'disk', 'expires')
      if not h[1] then
        skips = skips + 1                      -- the record is gone; so is the job
        index_remove(queue, class, id)
      elseif h[5] and tonumber(h[5]) <= now() then
        skips = skips + 1
        decide_end(id, 'REVOKED', 'expired')
        index_remove(queue, class, id)
      elseif closing(id) then
        skips = skips + 1
        decide_end(id, 'REVOKED', closing(id))
        index_remove(queue, class, id)
      else
        out[#out + 1] = lease_out(id, node, claim, lease)
        ids[#ids + 1] = id
        index_remove(queue, class, id)
        for k = 1, 4 do free[k] = free[k] - tonumber(h[k]) end
      end
    end
    if skips == 32 then more = true end
  end
  if #ids > 0 then redis.call('HSET', K.node(node), 'claim', claim, 'claimed', table.concat(ids, ' ')) end
  out[1] = (more and #ids == 0) and 1 or 0
  walks_over(node, over, out[1] == 1)
  return out
end)
