"""smtnet on Mininet: topologies, hosts, links, the programmable wire, the plug-in for mn."""
