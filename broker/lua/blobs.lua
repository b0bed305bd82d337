-- What becomes of objects in the durable store; see shared/blobs.lua. Names are those that the store knows.
local AGAIN_MS = 600000           -- until what a living attempt still has is looked at again

-- blobs_put(owner, name, head, name, head, …) -> names that are being deleted just now: nothing was noted of them, and
--   they must not be put before they are gone
-- head '': it is not put but used, such as an output of an earlier job that is one of this job too: what is not known
-- stays so.
-- Keys: blobs_until, blobs_made, blobs_pinned, blobs_going.
register('blobs_put', function(_, argv)
  local going = {}
  for i = 2, #argv, 2 do
    local name, head = argv[i], argv[i + 1]
    if redis.call('HEXISTS', K.blobs_going, name) == 1 then
      going[#going + 1] = name
    else
      local b, pinned = blob_of(name)
      if not b and head ~= '' then b = {u = 0, h = {}, f = {}} end
      if b and not b.s then
        if head ~= '' then b.h[head] = 1 end
        b.f[argv[1]] = now()
        blob_known(name, b, pinned)
      end
    end
  end
  return going
end)

-- blobs_keep(ms or -, name, …)
-- Of an attempt that is about to settle with more objects than one call may have: these are kept at least so long from
-- now, or for ever.
-- Keys: blobs_until, blobs_made, blobs_pinned.
register('blobs_keep', function(_, argv)
  for i = 2, #argv do
    local b, pinned = blob_of(argv[i])
    if argv[1] == '-' then
      blob_stays(argv[i])
    elseif b and not b.s then
      b.u = math.max(b.u, now() + tonumber(argv[1]))
      blob_known(argv[i], b, pinned)
    end
  end
end)

-- blobs_pin(owner, blob, name, …) -> names that were not pinned: they are being deleted just now, or the put has taken so
--   long that they may have been
-- A person keeps a blob, which is these objects. owner: whose puts they were, or ''.
-- Keys: as of blobs_put.
register('blobs_pin', function(_, argv)
  local going = {}
  for i = 3, #argv do
    local name = argv[i]
    local b = blob_of(name)
    local known = argv[1] == '' or (b and (b.s or b.p or b.f[argv[1]]))
    if not known or redis.call('HEXISTS', K.blobs_going, name) == 1 then
      going[#going + 1] = name
    else
      b = b or {u = 0, h = {}, f = {}, s = 1}
      b.f[argv[1]] = nil
      b.p = b.p or {}
      b.p[argv[2]] = 1
      blob_known(name, b, true)
      blob_unknown(name)
    end
  end
  return going
end, {})

-- blobs_unpin(blob, name, …) -> for each 0 it was not pinned by this blob, 1 it may expire, 2 it stays anyway, 3 it is
--   pinned by another blob too
-- Keys: blobs_until, blobs_made, blobs_pinned.
register('blobs_unpin', function(_, argv)
  local out = {}
  for i = 2, #argv do
    local name = argv[i]
    local b, pinned = blob_of(name)
    local left = pinned and b.p[argv[1]]
    if left then b.p[argv[1]] = nil end
    if left and next(b.p) then
      blob_known(name, b, true)
    elseif left then
      b.p = nil
      if not b.s then blob_known(name, b, false) end
      redis.call('HDEL', K.blobs_pinned, name)
    end
    out[#out + 1] = not left and 0 or b.p and 3 or b.s and 2 or 1
  end
  return out
end)

-- blobs_due(skip, limit, early ms) -> {how many more to skip next, 1 when there are more, due name, …}
-- Some of those whose time is over. Of one whose owner lives, the time is put off.
-- Keys: blobs_until, blobs_made, blobs_pinned, job.
register('blobs_due', function(_, argv)
  local skip, limit, early = tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3])
  local found = redis.call('ZRANGEBYSCORE', K.blobs_until, '-inf', num(now() + early), 'LIMIT', skip, limit)
  local left, due = #found, {}
  for _, name in ipairs(found) do
    if blob_due(name, early) then
      due[#due + 1] = name
    elseif tonumber(redis.call('ZSCORE', K.blobs_until, name)) <= now() then
      redis.call('ZADD', K.blobs_until, num(now() + AGAIN_MS + early), name)
      left = left - 1
    end
  end
  return {left, #found == limit and 1 or 0, unpack(due)}
end)

-- blobs_mark(early ms, name, …) -> {name, heads by blank, name, heads, …}: those that are due are being deleted from now on
-- Keys: blobs_until, blobs_made, blobs_pinned, blobs_going, job.
register('blobs_mark', function(_, argv)
  local out = {}
  for i = 2, #argv do
    local due, b = blob_due(argv[i], tonumber(argv[1]))
    if due then
      redis.call('HSET', K.blobs_going, argv[i], num(now()))
      local heads = {}
      for head in pairs(b.h) do heads[#heads + 1] = head end
      out[#out + 1] = argv[i]
      out[#out + 1] = table.concat(heads, ' ')
    end
  end
  return out
end)

-- blobs_spare(ms, name, …) -> nothing: a job that waits needs them; they are looked at again in so long
-- Keys: blobs_until, blobs_going.
register('blobs_spare', function(_, argv)
  for i = 2, #argv do
    redis.call('ZADD', K.blobs_until, 'XX', 'GT', num(now() + tonumber(argv[1])), argv[i])
    redis.call('HDEL', K.blobs_going, argv[i])
  end
end)

-- blobs_gone(name, …) -> nothing: what was marked is deleted, or is another object and stays
-- Keys: blobs_until, blobs_made, blobs_going.
register('blobs_gone', function(_, argv)
  for _, name in ipairs(argv) do
    blob_unknown(name)
    redis.call('HDEL', K.blobs_going, name)
  end
end)
