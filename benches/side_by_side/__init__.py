"""The parts of `benches/compare`.

main          the command line and the order of things
works         what is asked of every server, and the targets
peer          what all servers have in common here
peers         the servers of files and scripts: how each is configured and started
applications  those in front of PHP and Python applications
site          the files and scripts that they serve
processes     starting, watching and ending them; nothing of it outlives the command
measure       checks, rounds, samples
report        tables, targets, JSON, Markdown
chart         the SVG
"""
