"""Reports: pages that are one file, need no network, and are made from run folders alone."""
