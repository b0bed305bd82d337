import sys,collections,logging
sys.path.insert(0,'/tmp/wt/faults/tests'); logging.disable(50)
from yardtest.faults import strike, case
c=collections.Counter(); names=collections.Counter()
old=strike.Steps.__exit__
def ex(self,*a):
    c[self._strike.kind, self.taken>self._strike.at]+=1
    return old(self,*a)
strike.Steps.__exit__=ex
oldS=strike.Steps._struck
def st(self,name,first,*a):
    if first: names[self._strike.kind,name]+=1
    return oldS(self,name,first,*a)
strike.Steps._struck=st
harm=collections.Counter()
for s in range(0,200):
    try: case.run(s)
    except AssertionError as e: print(str(e)[:200])
print(c); print(names)
