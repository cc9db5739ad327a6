# The start-up code of a warm Perl: it makes an interpreter wait for requests
# that all run one script, and run each of them in a child of its own.
#
# The server starts   perl OPTIONS '-M5;BEGIN{require "THIS FILE"; $!=0}' /the/script
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
# - Modules are loaded ahead only if the script loads them unconditionally before
#   any code of its own; see "learning" below.
# - Whatever fails before the child has said that it runs ends this process:
#   going on would run the script without its request. What fails later execs
#   the script as a plain start would.
#
# Known to show: the zygote's command line and start environment in /proc, the
# same hash seed and addresses for all children, the order in which objects are
# destroyed that only global destruction finds (a plain run's depends on the size
# of its environment), and a symbol $version::{AUTOLOAD} without a value, which
# most scripts have anyway.
#
# Not for this file: which scripts may run this way (options such as -T, -x, -n,
# setuid, other encodings of the path), limits, timeouts. The server sees to it.

package ServeHereZygote;

# Every child writes to many of the values of this file and of the modules, were it
# only to count references, and gets a copy of each page it writes to. Room for all
# of them side by side makes that fewer pages: CGI.pm takes about as many.
BEGIN { my @values = (1) x 13_000 }

# The symbols of a fresh interpreter. Perl adds one for each special variable
# that a program names; those named below are taken away again.
our %fresh;
BEGIN { $fresh{$_} = 1 for keys %main:: }

# All but the last lines is one block: its own code is freed when it has run, here
# and not in each child.
BEGIN {

# What `use strict` would set: refs, subs, vars.
BEGIN { $^H |= 0x602 }

# ---------------------------------------------------------------- constants

# System calls by machine; the number is e_machine of an ELF header. Last, the
# place of the child's thread id among clone's arguments.
our %CALLS = (
    62 => {    # x86-64
        clone => 56, close => 3, close_range => 436, dup3 => 292, exit_group => 231,
        fcntl => 72, get_robust_list => 274, gettid => 186, lseek => 8, openat => 257,
        prctl => 157, prlimit64 => 302, read => 0, recvmsg => 47, sendto => 44, set_robust_list => 273,
        socket => 41, bind => 49, statx => 332, wait4 => 61, pipe2 => 293, write => 1,
        kill => 62, clock_gettime => 228, setpgid => 109, child_tid => 3,
    },
    183 => {    # aarch64
        clone => 220, close => 57, close_range => 436, dup3 => 24, exit_group => 94,
        fcntl => 25, get_robust_list => 100, gettid => 178, lseek => 62, openat => 56,
        prctl => 167, prlimit64 => 261, read => 63, recvmsg => 212, sendto => 206, set_robust_list => 99,
        socket => 198, bind => 200, statx => 291, wait4 => 260, pipe2 => 59, write => 64,
        kill => 129, clock_gettime => 113, setpgid => 154, child_tid => 4,
    },
);
our %sys;

sub AF_UNIX                  () { 1 }
sub AT_FDCWD                 () { -100 }
sub AT_EMPTY_PATH            () { 0x1000 }
sub CLONE_CHILD_CLEARTID     () { 0x00200000 }
sub CLONE_CHILD_SETTID       () { 0x01000000 }
sub CLONE_PARENT             () { 0x00008000 }
sub CLOCK_PROCESS_CPUTIME_ID () { 2 }
sub FD_CLOEXEC               () { 1 }
sub F_SETFD                  () { 2 }
sub MSG_CMSG_CLOEXEC         () { 0x40000000 }
sub MSG_NOSIGNAL             () { 0x4000 }
sub MSG_TRUNC                () { 0x20 }
sub MSG_CTRUNC               () { 0x08 }
sub O_CLOEXEC                () { 0x80000 }
sub PR_GET_TID_ADDRESS       () { 40 }
sub PR_SET_NAME              () { 15 }
sub RLIMIT_AS                () { 9 }
sub RLIMIT_BYTES             () { 16 }
sub RLIMIT_DATA              () { 2 }
sub PR_SET_PDEATHSIG         () { 1 }
sub SIGCHLD                  () { 17 }
sub SIGKILL                  () { 9 }
sub SIGTERM                  () { 15 }
sub SOCK_DGRAM               () { 2 }
sub SOCK_CLOEXEC             () { 0x80000 }
sub SOCK_NONBLOCK            () { 0x800 }
sub EINTR                    () { 4 }

# A request is at most 64 KiB; what is longer shows as cut off.
sub MESSAGE_BYTES            () { 72 << 10 }
# The header of a control message and three descriptors.
sub ANCILLARY_BYTES          () { 28 }
sub STATX_BYTES              () { 256 }
sub SCRIPT_FD                () { 3 }
# A list of loaded files longer than this isn't learnt.
sub MAX_REPORT_BYTES         () { 60 << 10 }
sub MAX_TEXT_BYTES           () { 1 << 20 }
# Loading what takes more CPU time would make requests wait; the next zygote does
# it before it says that it is ready.
sub MAX_PAUSE_MS             () { 80 }
# Of one size: some allocators give no new memory above the old.
sub MAX_PIECES               () { 500 }

# What perl or the C library looked at when this interpreter started: how such
# variables begin, by their first letter. A request that has other values needs an
# interpreter of its own.
our %FIXED_AT_START = (
    G => ['GLIBC_'],
    L => [ 'LANG', 'LC_', 'LD_', 'LOCPATH=' ],
    M => ['MALLOC_'],
    N => ['NLSPATH='],
    P => ['PERL'],
    T => ['TZ'],
);

# What may differ from request to request.
our $PER_REQUEST = qr/^(?:AUTH_|CONTENT_|DOCUMENT_|HTTP|PATH_|QUERY_|REDIRECT_|REMOTE_|REQUEST_|SCRIPT_|SERVER_[NP]|UNIQUE_)/;

# ---------------------------------------------------------------- state
#
# In package variables: lexicals would be cleared when this file is left, in
# memory that a child shares with the zygote as long as nobody writes to it. The
# constants are subs for the same reason.

our $control;        # the server's socket, a descriptor
our $server;         # its process id
our $limits;         # of its memory, at the start
our $tid_address;    # where the C library keeps the thread id
our $robust_list;    # and its list of robust locks: address, length
our %settings;       # the variables of %FIXED_AT_START, as NAME=VALUE
our $settings_count;
our $first_line;     # of the script; its options are in force here
our ( $message, $ancillary, $scratch );    # memory that the kernel writes to
our $private;        # the server's folder for its zygotes
our $script_is;      # the script's identity
our $zygote;         # this process's id; a child has another
our %watched;        # fd: something to learn from; then: what to do with it
our $reports;        # in a child: whether it tells what it has loaded
our $looked = 0;     # in a trial: how often a module looked at what differs
our @filling;        # memory that no child shall take
our $loaded;         # what is loaded ahead: see `load_ahead`

# ---------------------------------------------------------------- the story

# What is compiled already keeps the symbols it needs. This package is kept from
# being freed: that would be done in each child, and write to many pages.
our $watcher = bless {};
our $kept    = $main::{'ServeHereZygote::'};
delete $fresh{'ServeHereZygote::'};
delete @main::{ grep { not $fresh{$_} } keys %main:: };
# Those of the command line; its block, which is running, is renamed then.
delete @main::{qw(BEGIN !)};
delete $main::{__ANON__};
hide_lookups();

# Perl runs this in the child when it has compiled the script, before the
# script's own INIT blocks.
INIT { report() if $reports }

# Returns in a child, with the request put on.
sub serve {
    delete $INC{ (__FILE__) };
    my $reason = prepare();
    defined $reason and refuse($reason);
    recall() or start_learning();
    fill_gaps();
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
            # The server starts another one when the script is asked for.
            $loaded and defined out_of_date($script_is) and forget(), leave(0);
        }
    }
}

# Returns why this interpreter can't be used, or nothing.
sub prepare {
    my $number = delete $ENV{SERVE_HERE_CONTROL};
    $private = delete $ENV{SERVE_HERE_ZYGOTE};
    delete $ENV{SERVE_HERE_FAST_END};
    # The digits alone aren't tainted. syscall wants a number, not a string.
    defined $number and $number =~ /\A([0-9]+)\z/ or exit 1;
    $control = $1 + 0;

    $] >= 5.030 or return 'perl is older than 5.30';
    ${^TAINT} and return 'taint mode';
    $^P       and return 'a debugger';
    defined $^I and return 'in-place editing';
    defined $ENV{$_} and return "$_ is set"
        for qw(PERL_HASH_SEED PERL_PERTURB_KEYS PERL_RAND_SEED PERL5DB PERL5OPT);

    my $calls = $CALLS{ machine() } or return 'the system calls of this machine are unknown';
    %sys    = %$calls;
    $server = getppid;
    $zygote = $$;
    syscall( $sys{fcntl}, $control, F_SETFD, FD_CLOEXEC ) == 0
        or return 'the control socket is not open';

    $message   = memory(MESSAGE_BYTES);
    $ancillary = memory(ANCILLARY_BYTES);
    $scratch   = memory(STATX_BYTES);
    %settings  = map { $_ => 1 } grep { is_fixed($_) } map {"$_=$ENV{$_}"} keys %ENV;
    $settings_count = keys %settings;

    # Finding a function of the C library the first time is work; not in a child.
    umask umask;
    hide_lookups();
    defined and return $_ for find_tid_address(), find_robust_list(), try_clone();

    $limits    = memory_limits();
    $script_is = identity( AT_FDCWD, $0 );
    $script_is and $script_is eq identity( SCRIPT_FD, '' )
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
    my $vector = pack 'QQ', address($message), MESSAGE_BYTES;
    for (;;) {
        learn_while_idle() if %watched;
        my $header = pack 'QLx4QQQQix4', 0, 0, address($vector), 1,
            address($ancillary), ANCILLARY_BYTES, 0;
        my $length = syscall $sys{recvmsg}, $control, $header, MSG_CMSG_CLOEXEC;
        if ( $length < 0 ) {
            next if $! == EINTR;
            return 0;
        }
        my ( $space, $flags ) = unpack 'x40Qi', $header;
        my @streams = $space > 16 ? unpack 'x16i*', substr $ancillary, 0, $space : ();
        # Cut off: no request of ours. look_at declines what has no streams.
        if ( $flags & ( MSG_TRUNC | MSG_CTRUNC ) ) {
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
    memory_limits() eq $limits or return $request, undef, 'its memory has been limited';
    $script eq $0    or return $request, undef, 'another script';
    # Here, since a child can't decline any more. It is the same each time.
    chdir $directory or return $request, undef, 'no such directory';

    my $fd = open_script($script);
    defined $fd or return $request, undef, 'the script can not be read';
    first_line($fd) eq $first_line
        or return $request, $fd, "the script's first line has changed";
    my $is = identity( $fd, '' );
    $script_is = $is;
    return $request, $fd, $loaded ? out_of_date($is) : undef;
}

# A script has those of its interpreter. Set on this process alone, they are not
# what it would get.
sub memory_limits {
    my $found = '';
    for my $kind ( RLIMIT_AS, RLIMIT_DATA ) {
        syscall $sys{prlimit64}, 0, $kind, 0, $scratch;
        $found .= substr $scratch, 0, RLIMIT_BYTES;
    }
    return $found;
}

# Forks. The server is the child's parent, as of any script; the C library gets
# to know the new thread id, which its own fork would have told it.
sub clone_for_server {
    my $pid = raw_clone( CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD );
    return $pid < 0 ? undef : $pid;
}

# ---------------------------------------------------------------- in the child

# Makes this process what exec would have made of it.
sub become {
    my ( $request, $text, $script_fd, @streams ) = @_;
    my ( $header, @strings ) = unpack '(Z*)*', $text;
    my ( undef, undef, $args, $origs, $variables, $umask ) = split / /, $header;
    my @arguments = splice @strings, 0, $args;
    my @original  = splice @strings, 0, $origs;
    my @variables = splice @strings, 0, $variables;

    # Before the server knows of it, so that it can signal the group at once.
    syscall $sys{setpgid}, 0, 0;
    syscall $sys{prctl}, PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0;
    # It may have died before that was set.
    getppid == $server or leave(127);

    # From then on this is the script's process, by its name too.
    set_name( command_name( $0, @original ) );
    say_to_server("ran $request $$") or leave(1);
    syscall $sys{dup3}, $streams[$_], $_, 0 for 0 .. 2;
    syscall $sys{dup3}, $script_fd, SCRIPT_FD, O_CLOEXEC;
    close_from( SCRIPT_FD + 1, $script_fd, $control, @streams );
    syscall $sys{set_robust_list}, @$robust_list;
    umask oct $umask;

    set_environment(@variables);
    same_settings(@variables) or run_plainly( $0, @arguments );

    $reports = $watched{then} && $watched{then} == \&take_report;
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
    my $bare = defined $interpreter && index( $interpreter, '/' ) < 0;
    my $file = $bare ? $interpreter : $script;
    return substr $file, 1 + rindex( $file, '/' ), 15;
}

sub set_name {
    my ($name) = @_;
    syscall $sys{prctl}, PR_SET_NAME, $name, 0, 0, 0;
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

# ---------------------------------------------------------------- learning
#
# Most of a run is spent on loading modules, the same each time. They may be
# loaded ahead, here, if that can't make a difference to the script:
# - Only what a real run had loaded from Perl's own folders when its compilation
#   was done. A child reports that (INIT), until one report has come.
# - Only what the script names in `use` lines at its very top, in their order:
#   nothing that depends on a condition, nothing after code of its own, which
#   may have set what the module looks at, or be compiled differently.
# - Only what passes a trial in a process of its own: see `fits`.
# What was learnt is kept for the zygotes after this one. If the script or one of
# the files changes, or a file appears that Perl would find first, this process
# declines and ends.
#
# What was learnt is a hash: `script`, its identity; `folders`, its @INC; `own`,
# those that are Perl's; `paths`, what was loaded from these; `files`, those to
# load ahead.

sub start_learning {
    defined $private and length learning_path() < 108 or return;
    my ( $fd, $name ) = learning_socket( learning_path() );
    if ( syscall( $sys{bind}, $fd, $name, length $name ) < 0 ) {
        close_fd($fd);
        return;
    }
    watch( $fd, \&take_report );
}

sub learning_path {
    return "$private/learn-$zygote";
}

sub learning_socket {
    my ($path) = @_;
    my $fd = syscall $sys{socket}, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0;
    return $fd, pack 'Sa108', AF_UNIX, $path;
}

# In a child: sends what is loaded to the zygote. No descriptor stays open.
sub report {
    local ( $!, $@ );
    return if grep { ref or /\0/ } @INC;
    my @pairs = map { $_, $INC{$_} } grep { defined $INC{$_} and not ref $INC{$_} } keys %INC;
    my $text  = join "\0", unpack( 'H*', $script_is ), scalar(@INC), @INC, @pairs;
    return if length $text > MAX_REPORT_BYTES;
    my ( $fd, $name ) = learning_socket( learning_path() );
    syscall $sys{sendto}, $fd, $text, length $text, MSG_NOSIGNAL, $name, length $name;
    close_fd($fd);
}

# One descriptor besides the server's.
sub watch {
    my ( $fd, $then ) = @_;
    %watched = ( fd => $fd, then => $then );
}

sub stop_watching {
    close_fd( $watched{fd} );
    %watched = ();
}

# Returns when the server has something to say.
sub learn_while_idle {
    while (%watched) {
        my $ready = '';
        vec( $ready, $_, 1 ) = 1 for $control, $watched{fd};
        next if select( $ready, undef, undef, undef ) < 0;
        return if vec $ready, $control, 1;
        $watched{then}->();
    }
}

sub take_report {
    my $length = syscall $sys{read}, $watched{fd}, $message, MESSAGE_BYTES;
    my $text   = $length > 0 ? substr $message, 0, $length : '';
    my ( $script, $folders, @rest ) = split /\0/, $text, -1;
    my $now = identity( AT_FDCWD, $0 );
    # Of an older script: the next one will do.
    return if not $now or $script ne unpack 'H*', $now;
    unlink learning_path();
    stop_watching();

    my %learnt = ( script => $now, folders => [ splice @rest, 0, $folders ], own => [ own_folders() ] );
    my %own = map { $_ => 1 } @{ $learnt{own} };
    while ( my ( $file, $path ) = splice @rest, 0, 2 ) {
        my $folder = substr $path, 0, -1 - length $file;
        $learnt{paths}{$file} = $path if $own{$folder} and "$folder/$file" eq $path;
    }
    $learnt{files} = [ leading_modules( text_of($0), $learnt{paths} ) ];
    hide_lookups();
    start_trial( \%learnt ) if @{ $learnt{files} };
}

# The folders that this perl searches when nobody adds any. Only a fresh one
# knows: those of -I and PERL5LIB look the same.
sub own_folders {
    my ( $read, $write ) = pipe_pair();
    my $pid = helper();
    if ( $pid == 0 ) {
        syscall $sys{dup3}, $write, 1, 0;
        delete @ENV{ grep {/^PERL/} keys %ENV };
        { exec {$^X} $^X, '-e', 'print map { "$_\0" } @INC' }
        leave(1);
    }
    close_fd($write);
    my ( $text, $length ) = ('');
    $text .= substr $message, 0, $length
        while ( $length = syscall $sys{read}, $read, $message, MESSAGE_BYTES ) > 0;
    close_fd($read);
    syscall $sys{wait4}, $pid, 0, 0, 0;
    return split /\0/, $text;
}

# The files of the `use` lines that begin a script's text, as far as they are
# among the known.
sub leading_modules {
    my ( $text, $known ) = @_;
    my @files;
    for ($text) {
        for ( pos = 0 ;; ) {
            # Space, comments, documentation.
            next if /\G\s+/gc or /\G#.*/gc or /\G(?<![^\n])=[a-z].*?(?:\n=cut\b.*|\z)/gcs;
            # What neither loads anything nor would be compiled differently.
            next if /\G(?:use|no)\s+v?[0-9][0-9._]*\s*;/gc;
            next if /\G(?:\$\|\s*=\s*1|\$\|\+\+|package\s+main)\s*;/gc;
            next if /\G(?:my|our)\s*[\$\@%]\w+(?:\s*=\s*(?:[0-9]+|'[^'\\]*'|"[^"\\\$\@]*"|\(\s*\)))?\s*;/gc;
            /\G(?:use|no)\s+([A-Za-z_]\w*(?:::\w+)*)\b([^;]*);/gc or last;
            my ( $file, $list ) = ( "$1.pm", $2 );
            $file =~ s{::}{/}g;
            exists $known->{$file} or last;
            push @files, $file;
            # Their import loads what it is told, on condition or from anywhere.
            last if $file =~ m{\A(?:if|autouse|base|parent|fields|aliased|Module/.*)\.pm\z};
            # Code in the list runs after this load, before the next.
            $list =~ s/\$(?:FindBin::)?(?:Real)?(?:Bin|Script)\b//g;
            last if $list =~ /[\$\@&`]|\b(?:do|eval|require|sub)\b/;
        }
    }
    # FindBin looks where links lead, which may change: only what it needs.
    my @needed = qw(Carp.pm Exporter.pm Cwd.pm File/Basename.pm File/Spec.pm);
    return map { $_ eq 'FindBin.pm' ? grep { exists $known->{$_} } @needed : $_ } @files;
}

# ---------------------------------------------------------------- the trial

# Starts a process that loads the modules and looks whether it would show. Its
# answer, how many and how long it took, comes through a pipe; meanwhile requests
# are served.
sub start_trial {
    my ($learnt) = @_;
    my ( $read, $write ) = pipe_pair();
    my $pid = helper();
    if ( $pid == 0 ) {
        # What a module prints comes before the answer, and spoils it.
        syscall $sys{dup3}, $write, $_, 0 for 1, 2;
        close_from( SCRIPT_FD + 1, $read, $write, $control );
        $| = 1;
        alarm 10;
        my $start  = cpu_milliseconds();
        my $count  = try_modules($learnt);
        my $answer = "$count " . ( cpu_milliseconds() - $start ) . "\n";
        syscall $sys{write}, 1, $answer, length $answer;
        leave(0);
    }
    close_fd($write);
    watch( $read, sub { end_trial( $learnt, $pid ) } );
}

# In the trial's process: the number of modules that may be loaded ahead.
sub try_modules {
    my ($learnt) = @_;
    my ( $count, %seen ) = (0);
    my $outside = outside();
    watch_sources();
    for my $file ( @{ $learnt->{files} } ) {
        eval { load($file); 1 } or last;
        my @new = grep { not $seen{$_}++ } keys %INC;
        last if $looked or outside() ne $outside or grep { not fits( $learnt, $_ ) } @new;
        $count++;
    }
    return $count;
}

# Whether a loaded file may be loaded ahead: a real run had it from the same
# place, it isn't a source filter, which changes the script's text, and it
# doesn't keep its process id while it is loaded. (That can't be seen from
# outside; assignments at the start of a line are taken for such.)
sub fits {
    my ( $learnt, $file ) = @_;
    my $path = $learnt->{paths}{$file};
    return 0 if not defined $path or $path ne $INC{$file} or $file eq 'Filter/Util/Call.pm';
    return text_of($path) !~ /^(?:my|our|[\$\@%(])[^#\n]*=[^#\n'"]*(?<![\$\\])\$\$(?![\w{\[:\$(])/m;
}

# What a module could change besides Perl's own data: descriptors, threads,
# signal handlers, directory, file mode mask.
sub outside {
    my @entries;
    for my $folder (qw(fd task)) {
        opendir my $list, "/proc/self/$folder" or return '';
        push @entries, sort readdir $list;
    }
    my @handled = grep { defined $SIG{$_} and not /^__/ } sort keys %SIG;
    return join ' ', @entries, @handled, readlink '/proc/self/cwd', umask;
}

# Counts when a module draws a number, takes the time, or looks at what differs
# between requests: all children would have the same.
sub watch_sources {
    my %watched_calls = (
        time    => sub ()   { $looked++; CORE::time },
        rand    => sub (;$) { $looked++; CORE::rand( $_[0] || 1 ) },
        srand   => sub (;$) { $looked++; CORE::srand( $_[0] || 0 ) },
        getppid => sub ()   { $looked++; CORE::getppid },
    );
    BEGIN { $^H &= ~0x2 }    # by name: a glob in the text would stay visible
    *{"CORE::GLOBAL::$_"} = $watched_calls{$_} for keys %watched_calls;
    %$watcher = %ENV;
    tie %ENV, $watcher;
}

sub TIEHASH  { return $_[0] }
sub FETCH    { $looked++ if $_[1] =~ $PER_REQUEST; return $_[0]{ $_[1] } }
sub EXISTS   { $looked++ if $_[1] =~ $PER_REQUEST; return exists $_[0]{ $_[1] } }
sub STORE    { $looked++; $_[0]{ $_[1] } = $_[2] }
sub DELETE   { $looked++; return delete $_[0]{ $_[1] } }
sub CLEAR    { $looked++; %{ $_[0] } = () }
sub FIRSTKEY { $looked++; my $start = keys %{ $_[0] }; return each %{ $_[0] } }
sub NEXTKEY  { return each %{ $_[0] } }

sub end_trial {
    my ( $learnt, $pid ) = @_;
    my $length = syscall $sys{read}, $watched{fd}, $message, MESSAGE_BYTES;
    stop_watching();
    syscall $sys{kill}, $pid, SIGKILL;
    syscall $sys{wait4}, $pid, 0, 0, 0;
    my $answer = $length > 0 ? substr $message, 0, $length : '';
    my ( $count, $took ) = $answer =~ /\A([0-9]+) ([0-9]+)\n\z/ or return;
    $count or return;
    $#{ $learnt->{files} } = $count - 1;
    remember($learnt);
    $took <= MAX_PAUSE_MS or return;
    load_ahead($learnt);
    fill_gaps();
}

# ---------------------------------------------------------------- loading ahead

sub load_ahead {
    my ($learnt) = @_;
    hide_lookups();
    load($_) for @{ $learnt->{files} };
    # It went well in the trial. If not now, the next zygote learns anew.
    if ( grep { not defined $learnt->{paths}{$_} or $learnt->{paths}{$_} ne $INC{$_} } keys %INC ) {
        forget();
        leave(1);
    }
    $loaded = {
        script  => $learnt->{script},
        is      => { map { $_ => identity( AT_FDCWD, $_ ) } values %INC },
        year    => (localtime)[5],
        checked => 0,
    };
    my %own = map { $_ => 1 } @{ $learnt->{own} };
    for my $file ( keys %INC ) {
        for my $folder ( @{ $learnt->{folders} } ) {
            last if "$folder/$file" eq $INC{$file};
            push @{ $loaded->{ $own{$folder} ? 'before' : 'before_all' } }, "$folder/$file";
        }
    }
    say_to_server( 'log ' . keys(%INC) . ' module files are loaded ahead' );
}

# Free memory lies scattered between what stays. A child that took it would have to
# copy a page for each piece. So it is taken here and kept, from the largest pieces
# down, until what comes is new: that lies together.
sub fill_gaps {
    push @filling, memory( 100 << 10 );
    my $old = address( $filling[-1] );
    for my $bytes ( 16 << 10, 4 << 10, map { $_ * 16 + 7 } reverse 0 .. 63 ) {
        my $new = 0;
        for ( 1 .. MAX_PIECES ) {
            push @filling, memory($bytes);
            $new = address( $filling[-1] ) > $old ? $new + 1 : 0;
            last if $new == 12;
        }
    }
}

# As the main program would: `caller` in the module sees that package.
sub load {
    my ($file) = @_;
    package main;
    require $file;
}

# Why what is loaded may not be what the script would load now; nothing if it is.
# The script's own folders are looked at each time, Perl's once a second. Some
# modules keep the current year.
sub out_of_date {
    my ($script) = @_;
    $script eq $loaded->{script} or return 'the script has changed';
    identity( AT_FDCWD, $_ ) and return "there is a $_ now" for @{ $loaded->{before_all} };
    my $now = time;
    $now == $loaded->{checked} and return;
    identity( AT_FDCWD, $_ ) and return "there is a $_ now" for @{ $loaded->{before} };
    identity( AT_FDCWD, $_ ) eq $loaded->{is}{$_} or return "$_ has changed"
        for keys %{ $loaded->{is} };
    (localtime)[5] == $loaded->{year} or return 'a new year has begun';
    $loaded->{checked} = $now;
    return;
}

# The server's folder may hold what was learnt about several scripts.
sub memory_path {
    my $name = $0 =~ s/([^A-Za-z0-9.-])/sprintf '_%02x', ord $1/ger;
    return defined $private && length $name < 200 ? "$private/learnt-$name" : undef;
}

sub remember {
    my ($learnt) = @_;
    defined( my $path = memory_path() ) or return;
    my @lists = ( @$learnt{qw(folders own files)}, [ %{ $learnt->{paths} } ] );
    my $text = join "\0", unpack( 'H*', $learnt->{script} ), map { scalar(@$_), @$_ } @lists;
    open my $file, '>:raw', "$path.$zygote" or return;
    syswrite( $file, $text ) == length $text and close $file and rename "$path.$zygote", $path;
}

sub forget {
    my $path = memory_path();
    unlink $path if defined $path;
}

# Whether something was known about this very script.
sub recall {
    defined( my $path = memory_path() ) or return 0;
    my ( $script, @rest ) = split /\0/, text_of($path), -1;
    hide_lookups();
    defined $script and $script eq unpack 'H*', $script_is or return 0;
    my %learnt = ( script => $script_is );
    $learnt{$_} = [ splice @rest, 0, shift @rest ] for qw(folders own files);
    $learnt{paths} = { splice @rest, 0, shift @rest };
    load_ahead( \%learnt );
    return 1;
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
    syscall( $sys{prctl}, PR_GET_TID_ADDRESS, $answer, 0, 0, 0 ) == 0
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
    my $pid  = raw_clone( CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD );
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

# Looking for DESTROY leaves an empty AUTOLOAD in a package: in `version` by the
# command line's "use 5", in IO::File by the end of a file handle. Takes it away
# and makes Perl look again, as it does in a fresh interpreter. (In `version` it
# comes back early: a value of that "use 5" is freed when the script is compiled.)
sub hide_lookups {
    delete $version::{AUTOLOAD};
    delete $IO::File::{AUTOLOAD};
    mro::method_changed_in($_) for qw(version IO::File);
}

# ---------------------------------------------------------------- system calls

sub raw_clone {
    my ($flags) = @_;
    my @arguments = ( $flags, 0, 0, 0, 0 );
    $arguments[ $sys{child_tid} ] = $tid_address;
    return syscall $sys{clone}, @arguments;
}

# A process that helps this one and ends with it.
sub helper {
    my $pid = raw_clone( CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD );
    $pid >= 0 or leave(1);
    syscall $sys{prctl}, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0 if $pid == 0;
    return $pid;
}

sub pipe_pair {
    my $pair = memory(8);
    syscall( $sys{pipe2}, $pair, O_CLOEXEC ) == 0 or leave(1);
    return unpack 'ii', $pair;
}

# Of this process; Perl's `times` counts in hundredths of a second.
sub cpu_milliseconds {
    my $time = memory(16);
    syscall $sys{clock_gettime}, CLOCK_PROCESS_CPUTIME_ID, $time;
    my ( $seconds, $nanoseconds ) = unpack 'qq', $time;
    return $seconds * 1000 + int $nanoseconds / 1_000_000;
}

sub say_to_server {
    my ($text) = @_;
    my $data = "$text\0";
    my $sent;
    do {
        $sent = syscall $sys{sendto}, $control, $data, length $data, MSG_NOSIGNAL, 0, 0;
    } while $sent < 0 && $! == EINTR;
    return $sent >= 0;
}

sub open_script {
    my ($path) = @_;
    my $fd = syscall $sys{openat}, AT_FDCWD, $path, O_CLOEXEC;
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
    syscall( $sys{statx}, $fd, $path, AT_EMPTY_PATH, $all, $scratch ) == 0 or return '';
    return join '', unpack 'x20 a12 a16 x48 a32 x8 a8', $scratch;
}

# Nothing if it can't be read.
sub text_of {
    my ($path) = @_;
    open my $file, '<:raw', $path or return '';
    my $text = '';
    sysread $file, $text, MAX_TEXT_BYTES;
    return $text;
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

# No regular expression: a child would copy a dozen pages for the first one.
sub is_fixed {
    my ($variable) = @_;
    my $beginnings = $FIXED_AT_START{ substr $variable, 0, 1 } or return 0;
    for my $beginning (@$beginnings) {
        return 1 if substr( $variable, 0, length $beginning ) eq $beginning;
    }
    return 0;
}

# Whether these variables, NAME=VALUE, hold the settings of this interpreter.
sub same_settings {
    my $count = 0;
    for my $variable (@_) {
        is_fixed($variable) or next;
        exists $settings{$variable} or return 0;
        $count++;
    }
    return $count == $settings_count;
}

}

# `eval` and `or`: if this fails, the script must not run.
eval { serve(); 1 } or leave(1);

# Only a child comes here. Perl goes on with the script.
$@ = '';
1;
