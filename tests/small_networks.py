"""All small networks, as factories MODULE:NAME: those that can be cut, and those that are refused."""

import attentions
import blocks
import gates
import wirings
import zoo

MODULES = [module.__name__ for module in (zoo, blocks, gates, attentions, wirings)]
REFUSED = {"zoo:Tied": "shares weights", "zoo:Normed": "has a parametrised weight"}
REFUSED |= {f"blocks:{name}": why for name, why in blocks.REFUSED.items()}
REFUSED |= {f"wirings:{name}": why for name, why in wirings.REFUSED.items()}
ALL = [f"zoo:{name}" for name in zoo.TRAINED]
ALL += [f"blocks:{name}" for name in (*blocks.CUT, *blocks.REFUSED)]
ALL += [f"gates:{name}" for name in gates.CUT]
ALL += [f"attentions:{name}" for name in attentions.CUT]
ALL += [f"wirings:{name}" for name in (*wirings.CUT, *wirings.REFUSED)]
CUT = [name for name in ALL if name not in REFUSED]
