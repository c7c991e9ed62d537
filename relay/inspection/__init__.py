"""`relay streams`: what an operator sees of streams, on every replica, and stopping one. It reads the store that the
replicas share with their own settings; they are asked nothing, and there is no port for it."""
