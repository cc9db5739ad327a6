"""The parts of `benches/compare`.

main          the command line and the order of things
works         what is asked of every server, and the targets
peer          what all servers have in common here
peers         the servers of files and scripts: how each is configured and started
applications  those in front of PHP and Python applications
site          the files and scripts that they serve
processes     starting, watching and ending them; nothing of it outlives the command
measure       checks, rounds, samples
holds         many requests that wait at once
slow          the application that lets them wait, and the clients; a program of its own
report        tables, targets, JSON, Markdown
chart         the SVG
"""
