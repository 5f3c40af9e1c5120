"""Links, connections and topics: who is connected and who hears what."""
