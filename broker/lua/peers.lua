-- Which nodes have a sealed object in their near store, or fetch it from the durable store just now. All of this may be
-- wrong or gone at any time: then an object is fetched once more than need be. So a Redis without memory refuses it
-- (NO_OOM). Names are those of objects in stores.
-- Keys: holders, flight, node, nodes.
local NO_OOM = {}

-- Where a node's peer door is, if it has one and was heard of since `since` (ms).
local function door_of(node, since)
  local seen = redis.call('ZSCORE', K.nodes, node)
  if not seen or tonumber(seen) < since then return nil end
  local address = redis.call('HGET', K.node(node), 'peer')
  return address and address ~= '' and address or nil
end

-- seek(name, node, flight ms, silent ms, most, node to pass over, …) -> {'here', node, address, …}: up to `most` others
-- that have it; {'flies', node, address}: another one fetches it; {'mine'}: this one is to, and the next who ask are told
-- so for `flight ms`, unless `fly` says that it goes on. A node silent for longer than `silent ms` is passed over too.
register('seek', function(_, argv)
  local name, node, t = argv[1], argv[2], now()
  local since, most, without = t - tonumber(argv[4]), tonumber(argv[5]), {[node] = true}
  for i = 6, #argv do without[argv[i]] = true end
  local holders, here = K.holders(name), {'here'}
  redis.call('ZREMRANGEBYSCORE', holders, '-inf', num(t))
  for _, holder in ipairs(redis.call('ZRANDMEMBER', holders, -3 * most)) do    -- each perhaps more than once
    local address = not without[holder] and door_of(holder, since)
    if address and #here < 2 * most then
      here[#here + 1] = holder
      here[#here + 1] = address
      without[holder] = true
    end
  end
  if #here > 1 then return here end
  local flyer = redis.call('GET', K.flight(name))
  if flyer and not without[flyer] then
    local address = door_of(flyer, since)
    if address then return {'flies', flyer, address} end
  end
  redis.call('SET', K.flight(name), node, 'PX', argv[3])
  return {'mine'}
end, NO_OOM)

-- fly(name, node, flight ms) -> 1: the fetch goes on; 0: another node fetches it now, or nobody is known to.
register('fly', function(_, argv)
  if redis.call('GET', K.flight(argv[1])) ~= argv[2] then return 0 end
  redis.call('PEXPIRE', K.flight(argv[1]), argv[3])
  return 1
end, NO_OOM)

-- hold(node, held ms, name, …) -> 1: the node has these for so long as far as it knows, and fetches none of them any more.
-- held ms = 0: it fetches them no more, and says nothing else.
register('hold', function(_, argv)
  local node, held, t = argv[1], tonumber(argv[2]), now()
  for i = 3, #argv do
    local holders, flight = K.holders(argv[i]), K.flight(argv[i])
    if held > 0 then
      redis.call('ZADD', holders, num(t + held), node)
      redis.call('PEXPIRE', holders, num(held))
    end
    if redis.call('GET', flight) == node then redis.call('DEL', flight) end
  end
  return 1
end, NO_OOM)

-- drop(node or '', name, …) -> 1: this node does not have these; '': as far as is known, nobody has.
register('drop', function(_, argv)
  for i = 2, #argv do
    if argv[1] == '' then redis.call('DEL', K.holders(argv[i])) else redis.call('ZREM', K.holders(argv[i]), argv[1]) end
  end
  return 1
end, NO_OOM)
