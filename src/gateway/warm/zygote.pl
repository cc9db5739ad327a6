# The start-up code of a warm Perl: it makes an interpreter wait for requests
# that all run one script, and run each of them in a child of its own.
#
# The server starts   perl OPTIONS '-M5;BEGIN{do "THIS FILE"; $!=0}' /the/script
# Perl opens the script as descriptor 3, but hasn't read a byte of it when the
# BEGIN block runs. This file loops inside that block: for each request it makes
# a child, puts a fresh descriptor of the script onto number 3, sets environment,
# arguments and streams, and returns. Perl then goes on where it stood: it
# compiles and runs the script as its main program. So DATA, $0, caller, $^S,
# INIT, END, messages and exit codes are Perl's own; nothing is imitated.
#
# Law: the script can't tell. Hence what looks odd below:
# - No module is used, not even strict.pm: it would be in the script's %INC.
#   Sockets and the clone are system calls by number on packed structures.
# - No string eval (it counts in "(eval N)"), no rand, no %!, no readline.
# - Whatever fails before the child has said that it runs ends this process:
#   going on would run the script without its request. What fails later execs
#   the script as a plain start would.
#
# Not for this file: which scripts may run this way (options such as -T, -x, -n,
# setuid, other encodings of the path), limits, timeouts. The server sees to it.

package ServeHereZygote;

# The symbols of a fresh interpreter. Perl adds one for each special variable
# that a program names; those named below are taken away again.
my %fresh;
BEGIN { $fresh{$_} = 1 for keys %main:: }

# What `use strict` would set: refs, subs, vars.
BEGIN { $^H |= 0x602 }

# ---------------------------------------------------------------- constants

# System calls by machine; the number is e_machine of an ELF header. Last, the
# place of the child's thread id among clone's arguments.
my %CALLS = (
    62 => {    # x86-64
        clone => 56, close => 3, close_range => 436, dup3 => 292, exit_group => 231,
        fcntl => 72, get_robust_list => 274, gettid => 186, lseek => 8, openat => 257,
        prctl => 157, read => 0, recvmsg => 47, sendto => 44, set_robust_list => 273,
        socket => 41, bind => 49, statx => 332, wait4 => 61, child_tid => 3,
    },
    183 => {    # aarch64
        clone => 220, close => 57, close_range => 436, dup3 => 24, exit_group => 94,
        fcntl => 25, get_robust_list => 100, gettid => 178, lseek => 62, openat => 56,
        prctl => 167, read => 63, recvmsg => 212, sendto => 206, set_robust_list => 99,
        socket => 198, bind => 200, statx => 291, wait4 => 260, child_tid => 4,
    },
);
my %sys;

my $AT_FDCWD              = -100;
my $AT_EMPTY_PATH         = 0x1000;
my $CLONE_CHILD_CLEARTID  = 0x00200000;
my $CLONE_CHILD_SETTID    = 0x01000000;
my $CLONE_PARENT          = 0x00008000;
my $FD_CLOEXEC            = 1;
my $F_SETFD               = 2;
my $MSG_CMSG_CLOEXEC      = 0x40000000;
my $MSG_NOSIGNAL          = 0x4000;
my $MSG_TRUNC             = 0x20;
my $MSG_CTRUNC            = 0x08;
my $O_CLOEXEC             = 0x80000;
my $PR_GET_TID_ADDRESS    = 40;
my $PR_SET_NAME           = 15;
my $PR_SET_PDEATHSIG      = 1;
my $SIGCHLD               = 17;
my $SIGTERM               = 15;
my $EINTR                 = 4;

# A request is at most 64 KiB; what is longer shows as cut off.
my $MESSAGE_BYTES = 72 << 10;
# The header of a control message and three descriptors.
my $ANCILLARY_BYTES = 28;
my $STATX_BYTES     = 256;
my $SCRIPT_FD       = 3;

# What perl or the C library looked at when this interpreter started. A request
# that has other values needs an interpreter of its own.
my $FIXED_AT_START = qr/^(?:PERL|LC_|LANG|LOCPATH$|NLSPATH$|LD_|MALLOC_|GLIBC_|TZ)/;

# ---------------------------------------------------------------- state

my $control;        # the server's socket, a descriptor
my $server;         # its process id
my $tid_address;    # where the C library keeps the thread id
my $robust_list;    # and its list of robust locks: address, length
my $settings;       # the variables of $FIXED_AT_START
my $first_line;     # of the script; its options are in force here
my ( $message, $ancillary, $scratch );    # memory that the kernel writes to

# ---------------------------------------------------------------- the story

# The code that is compiled already keeps the symbols it needs.
delete @main::{ grep { not $fresh{$_} and $_ ne 'ServeHereZygote::' } keys %main:: };
delete @main::{qw(BEGIN !)};    # named on the command line
delete $version::{AUTOLOAD};    # looked for by its "use 5"
delete $INC{ (__FILE__) };

# `eval` and `or`: if this fails, the script must not run.
eval { serve(); 1 } or leave(1);

# Only a child comes here; what is left to do is to take this package away.
# Perl renames subs that lose their package, to __ANON__.
package main;
delete $main::{'ServeHereZygote::'};
delete $main::{__ANON__};
$@ = '';
1;

package ServeHereZygote;

# Returns in a child, with the request put on.
sub serve {
    my $reason = prepare();
    defined $reason and refuse($reason);
    say_to_server( 'ready perl ' . version() ) or leave(1);
    for (;;) {
        my ( $length, @streams ) = receive();
        $length or leave(0);    # the server has gone
        my ( $request, $script_fd, $declined ) = look_at( $length, @streams );
        my $pid = defined $declined ? undef : clone_for_server();
        if ( defined $pid and $pid == 0 ) {
            return become( $request, substr( $message, 0, $length ), $script_fd, @streams );
        }
        # Nothing of a request stays here.
        close_fd($_) for grep { defined } $script_fd, @streams;
        substr $message, 0, $length, "\0" x $length;
        if ( not defined $pid ) {
            $declined = 'no process could be made' if not defined $declined;
            say_to_server("no $request $declined") or leave(0);
        }
    }
}

# Returns why this interpreter can't be used, or nothing.
sub prepare {
    my $number = delete $ENV{SERVE_HERE_CONTROL};
    delete @ENV{qw(SERVE_HERE_ZYGOTE SERVE_HERE_FAST_END)};
    # The digits alone aren't tainted. syscall wants a number, not a string.
    defined $number and $number =~ /\A([0-9]+)\z/ or exit 1;
    $control = $1 + 0;

    $] >= 5.030 or return 'perl is older than 5.30';
    ${^TAINT} and return 'taint mode';
    $^P       and return 'a debugger';
    defined $^I and return 'in-place editing';
    defined $ENV{$_} and return "$_ is set"
        for qw(PERL_HASH_SEED PERL_PERTURB_KEYS PERL_RAND_SEED PERL5DB);

    my $calls = $CALLS{ machine() } or return 'the system calls of this machine are unknown';
    %sys    = %$calls;
    $server = getppid;
    syscall( $sys{fcntl}, $control, $F_SETFD, $FD_CLOEXEC ) == 0
        or return 'the control socket is not open';

    $message   = memory($MESSAGE_BYTES);
    $ancillary = memory($ANCILLARY_BYTES);
    $scratch   = memory($STATX_BYTES);
    $settings  = fixed_settings();

    defined and return $_ for find_tid_address(), find_robust_list(), try_clone();

    my $script = identity( $AT_FDCWD, $0 );
    $script and $script eq identity( $SCRIPT_FD, '' )
        or return 'the script is not descriptor 3';
    my $fd = open_script($0);
    defined $fd or return 'the script can not be read';
    $first_line = first_line($fd);
    close_fd($fd);
    return;
}

# ---------------------------------------------------------------- in the zygote

# Waits for a request. Returns its length (0: the server has gone) and the
# descriptors that came with it.
sub receive {
    my $vector = pack 'QQ', address($message), $MESSAGE_BYTES;
    for (;;) {
        my $header = pack 'QLx4QQQQix4', 0, 0, address($vector), 1,
            address($ancillary), $ANCILLARY_BYTES, 0;
        my $length = syscall $sys{recvmsg}, $control, $header, $MSG_CMSG_CLOEXEC;
        if ( $length < 0 ) {
            next if $! == $EINTR;
            return 0;
        }
        my ( $space, $flags ) = unpack 'x40Qi', $header;
        my @streams = $space > 16 ? unpack 'x16i*', substr $ancillary, 0, $space : ();
        # Cut off: no request of ours. look_at declines what has no streams.
        if ( $flags & ( $MSG_TRUNC | $MSG_CTRUNC ) ) {
            close_fd($_) for @streams;
            @streams = ();
        }
        return $length, @streams;
    }
}

# What has to be known before there is a child: returns the request's number,
# the script as a descriptor, and why it is declined, if it is. Everything else
# in the message is left to the child, so that no request's data gets here.
sub look_at {
    my ( $length, @streams ) = @_;
    my $header = substr $message, 0, index $message, "\0";
    my ($request) = $header =~ /\Arun ([0-9]+) [0-9]+ [0-9]+ [0-9]+ [0-7]+\z/ or leave(1);
    @streams == 3 or return $request, undef, 'not three streams';
    substr( $message, $length - 1, 1 ) eq "\0" or return $request, undef, 'no end';

    my $end       = rindex $message, "\0", $length - 2;
    my $start     = rindex $message, "\0", $end - 1;
    my $directory = substr $message, $start + 1, $end - $start - 1;
    my $script    = substr $message, $end + 1, $length - $end - 2;
    $script eq $0    or return $request, undef, 'another script';
    # Here, since a child can't decline any more. It is the same each time.
    chdir $directory or return $request, undef, 'no such directory';

    my $fd = open_script($script);
    defined $fd or return $request, undef, 'the script can not be read';
    first_line($fd) eq $first_line
        or return $request, $fd, "the script's first line has changed";
    return $request, $fd;
}

# Forks. The server is the child's parent, as of any script; the C library gets
# to know the new thread id, which its own fork would have told it.
sub clone_for_server {
    my $pid = raw_clone( $CLONE_PARENT | $CLONE_CHILD_SETTID | $CLONE_CHILD_CLEARTID | $SIGCHLD );
    return $pid < 0 ? undef : $pid;
}

# ---------------------------------------------------------------- in the child

# Makes this process what exec would have made of it, in the order of a plain
# start.
sub become {
    my ( $request, $text, $script_fd, @streams ) = @_;
    my ( $header, @strings ) = split /\0/, $text, -1;
    my ( undef, undef, $args, $origs, $variables, $umask ) = split / /, $header;
    my @arguments = splice @strings, 0, $args;
    my @original  = splice @strings, 0, $origs;
    my @variables = splice @strings, 0, $variables;

    say_to_server("ran $request $$") or leave(1);
    syscall $sys{dup3}, $streams[$_], $_, 0 for 0 .. 2;
    syscall $sys{dup3}, $script_fd, $SCRIPT_FD, $O_CLOEXEC;
    close_from( $SCRIPT_FD + 1, $script_fd, $control, @streams );

    setpgrp 0, 0;
    syscall $sys{prctl}, $PR_SET_PDEATHSIG, $SIGTERM, 0, 0, 0;
    # It may have died before that was set.
    getppid == $server or leave(127);
    syscall $sys{set_robust_list}, @$robust_list;
    umask oct $umask;
    set_name( command_name( $0, @original ) );

    set_environment(@variables);
    fixed_settings() eq $settings or run_plainly( $0, @arguments );

    shift @arguments;
    @ARGV = @arguments;
    $^T   = time;
    $?    = 0;
    return 1;
}

# The name that exec gives a process: that of the file which was executed. With
# "#!/usr/bin/env perl" that is perl; its argument 0 is then a bare name.
sub command_name {
    my ( $script, $interpreter ) = @_;
    my $file = defined $interpreter && $interpreter !~ m{/} ? $interpreter : $script;
    return substr $file =~ m{([^/]*)\z} ? $1 : $file, 0, 15;
}

sub set_name {
    my ($name) = @_;
    syscall $sys{prctl}, $PR_SET_NAME, $name, 0, 0, 0;
}

# Replaces it whole. Assigning to %ENV sets the C library's as well.
sub set_environment {
    %ENV = ();
    for my $variable (@_) {
        my $equals = index $variable, '=';
        $ENV{ substr $variable, 0, $equals } = substr $variable, $equals + 1 if $equals > 0;
    }
}

sub run_plainly {
    my ( $script, @arguments ) = @_;
    { exec {$script} @arguments }
    leave(127);
}

# ---------------------------------------------------------------- start-up

# e_machine of the interpreter, if it is a 64-bit little-endian program.
sub machine {
    open my $self, '<:raw', '/proc/self/exe' or return 0;
    sysread $self, my $header, 20;
    my ( $magic, $class, $order, $machine ) = unpack 'a4CCx12S<', $header;
    return $magic eq "\x7fELF" && $class == 2 && $order == 1 ? $machine : 0;
}

# The C library keeps the thread id in memory, and there is no call to tell it a
# new one: clone writes it there. Some libraries (musl) have something else at
# the address that the kernel knows; it is right if the number is.
sub find_tid_address {
    my $answer = memory(8);
    syscall( $sys{prctl}, $PR_GET_TID_ADDRESS, $answer, 0, 0, 0 ) == 0
        or return 'the kernel does not tell where the thread id is';
    $tid_address = unpack 'Q', $answer;
    return if $tid_address && thread_id_in_memory() == syscall $sys{gettid};
    return 'the C library keeps its thread id elsewhere';
}

sub thread_id_in_memory {
    return unpack 'l', unpack 'P4', pack 'Q', $tid_address;
}

sub find_robust_list {
    my ( $address, $length ) = ( memory(8), memory(8) );
    syscall( $sys{get_robust_list}, 0, $address, $length ) == 0
        or return 'the list of robust locks is unknown';
    $robust_list = [ map { unpack 'Q', $_ } $address, $length ];
    return;
}

# Whether a child made by number is whole: it knows its ids and can end.
sub try_clone {
    my $self = $$;
    my $pid  = raw_clone( $CLONE_CHILD_SETTID | $CLONE_CHILD_CLEARTID | $SIGCHLD );
    if ( $pid == 0 ) {
        my $whole = getppid == $self && thread_id_in_memory() == $$ && $$ != $self;
        leave( $whole ? 7 : 1 );
    }
    my $status = memory(4);
    $pid > 0 and syscall( $sys{wait4}, $pid, $status, 0, 0 ) == $pid
        or return 'no process could be made';
    return unpack( 'l', $status ) == 7 << 8 ? undef : 'a child is not whole';
}

# Needs no system call by number: there may be none.
sub refuse {
    my ($reason) = @_;
    open my $socket, '+<&=', $control or exit 1;
    syswrite $socket, "never $reason\0";
    exit 0;
}

# From 5.036000. The object in $^V would load what it needs into its package.
sub version {
    my ( $major, $minor, $patch ) = sprintf( '%.6f', $] ) =~ /\A([0-9]+)\.([0-9]{3})([0-9]{3})\z/;
    return join '.', map { $_ + 0 } $major, $minor, $patch;
}

# ---------------------------------------------------------------- system calls

sub raw_clone {
    my ($flags) = @_;
    my @arguments = ( $flags, 0, 0, 0, 0 );
    $arguments[ $sys{child_tid} ] = $tid_address;
    return syscall $sys{clone}, @arguments;
}

sub say_to_server {
    my ($text) = @_;
    my $data = "$text\0";
    my $sent;
    do {
        $sent = syscall $sys{sendto}, $control, $data, length $data, $MSG_NOSIGNAL, 0, 0;
    } while $sent < 0 && $! == $EINTR;
    return $sent >= 0;
}

sub open_script {
    my ($path) = @_;
    my $fd = syscall $sys{openat}, $AT_FDCWD, $path, $O_CLOEXEC;
    return $fd < 0 ? undef : $fd;
}

# At most what the kernel itself reads of it. Leaves the file at its start.
sub first_line {
    my ($fd) = @_;
    my $length = syscall $sys{read}, $fd, $scratch, 256;
    syscall $sys{lseek}, $fd, 0, 0;
    return substr( $scratch, 0, $length > 0 ? $length : 0 ) =~ /\A([^\n]*)/ ? $1 : '';
}

# Says whether it is still the same file with the same content: owner, mode,
# inode, size, times of change and modification to the nanosecond, device.
# Perl's stat knows seconds only, and would leave its result in `_`.
sub identity {
    my ( $fd, $path ) = @_;
    my $all = 0x7ff;
    syscall( $sys{statx}, $fd, $path, $AT_EMPTY_PATH, $all, $scratch ) == 0 or return '';
    return join '', unpack 'x20 a12 a16 x48 a32 x8 a8', $scratch;
}

sub close_fd {
    syscall $sys{close}, $_[0];
}

# Before Linux 5.9 there is no call for it; then those that are known.
sub close_from {
    my ( $first, @known ) = @_;
    return if syscall( $sys{close_range}, $first, 0xffffffff, 0 ) == 0;
    close_fd($_) for @known;
}

# Ends this process at once: no END, no destructors, no flush.
sub leave {
    my ($status) = @_;
    syscall $sys{exit_group}, $status if %sys;
    exit $status;
}

# ---------------------------------------------------------------- small things

# A string of zeros that shares its memory with none: the kernel writes there.
sub memory {
    my ($bytes) = @_;
    my $memory = '';
    vec( $memory, $bytes - 1, 8 ) = 0;
    return $memory;
}

sub address {
    return unpack 'Q', pack 'P', $_[0];
}

sub fixed_settings {
    return join "\0", map {"$_=$ENV{$_}"} sort grep { $_ =~ $FIXED_AT_START } keys %ENV;
}
