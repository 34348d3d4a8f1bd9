package cloudconfig

// Config is a cloud-config document: the keys a node acts on, and, as blank
// fields, those that it knows and does not act on, with what to do instead.
type Config struct {
	// Name of the node.
	Hostname           string      `cloud:"hostname"`
	FQDN               string      `cloud:"fqdn"`
	PreserveHostname   bool        `cloud:"preserve_hostname"`
	PreferFQDN         bool        `cloud:"prefer_fqdn_over_hostname"`
	ManageEtcHosts     Switch      `cloud:"manage_etc_hosts"`
	CreateHostnameFile *bool       `cloud:"create_hostname_file"`
	Timezone           string      `cloud:"timezone"`
	Locale             Switch      `cloud:"locale"`
	Keyboard           *Keyboard   `cloud:"keyboard"`
	NTP                *NTP        `cloud:"ntp"`
	ManageResolvConf   bool        `cloud:"manage_resolv_conf"`
	ResolvConf         *ResolvConf `cloud:"resolv_conf"`
	CACerts            *CACerts    `cloud:"ca_certs,ca-certs"`

	// Who gets in.
	Groups            Groups            `cloud:"groups"`
	Users             Users             `cloud:"users"`
	User              *User             `cloud:"user"`
	Password          string            `cloud:"password"`
	Chpasswd          *Chpasswd         `cloud:"chpasswd"`
	SSHPwauth         Tri               `cloud:"ssh_pwauth"`
	SSHAuthorizedKeys []string          `cloud:"ssh_authorized_keys"`
	AllowPublicKeys   *bool             `cloud:"allow_public_ssh_keys"`
	DisableRoot       *bool             `cloud:"disable_root"`
	SSHKeys           map[string]string `cloud:"ssh_keys"`
	SSHDeleteKeys     *bool             `cloud:"ssh_deletekeys"`
	SSHGenKeyTypes    []string          `cloud:"ssh_genkeytypes"`
	SSHQuietKeygen    bool              `cloud:"ssh_quiet_keygen"`

	// Disks. growpart and resize_rootfs ask for what init does at every boot.
	DeviceAliases      map[string]string    `cloud:"device_aliases"`
	DiskSetup          map[string]DiskSetup `cloud:"disk_setup"`
	FSSetup            []FSSetup            `cloud:"fs_setup"`
	Mounts             []Lines              `cloud:"mounts"`
	MountDefaultFields Fields               `cloud:"mount_default_fields"`
	Swap               *Swap                `cloud:"swap"`
	Growpart           *Growpart            `cloud:"growpart"`
	ResizeRootfs       Switch               `cloud:"resize_rootfs"`

	// What is put there and run.
	WriteFiles   []WriteFile `cloud:"write_files"`
	Bootcmd      []Command   `cloud:"bootcmd"`
	Runcmd       []Command   `cloud:"runcmd"`
	FinalMessage string      `cloud:"final_message"`
	PowerState   *PowerState `cloud:"power_state"`

	_ struct{} `cloud:"packages,package_update,package_upgrade,package_reboot_if_required,apt_update,apt_upgrade,apt_reboot_if_required,apt,apt_pipelining" why:"an appliance gets its packages when its image is built; add them to the role's profile and build it again"`
	_ struct{} `cloud:"snap,apk_repos,yum_repos,yum_repo_dir,zypper,rh_subscription,ubuntu_pro,ubuntu_advantage,ubuntu_drivers,drivers,autoinstall,byobu_by_default,fan" why:"it belongs to another distribution"`
	_ struct{} `cloud:"ansible,chef,puppet,salt_minion,mcollective,landscape,spacewalk,lxd" why:"the image has no such program; use write_files and runcmd if your profile adds it"`
	_ struct{} `cloud:"grub_dpkg,grub-dpkg" why:"the boot loader is part of the image"`
	_ struct{} `cloud:"ssh_import_id" why:"a node fetches no keys from the network; list them under ssh_authorized_keys"`
	_ struct{} `cloud:"phone_home" why:"a node answers questions and does not call out; use 'firstboot status --json' or runcmd"`
	_ struct{} `cloud:"rsyslog" why:"the image logs to the journal only"`
	_ struct{} `cloud:"random_seed" why:"the kernel seeds itself from the virtual machine's entropy device"`
	_ struct{} `cloud:"wireguard" why:"write /etc/systemd/network/*.netdev with write_files"`
	_ struct{} `cloud:"disable_ec2_metadata,updates,reporting,output,vendor_data,launch-index,migrate" why:"it steers cloud-init itself, which this image does not have"`
	_ struct{} `cloud:"cloud_init_modules,cloud_config_modules,cloud_final_modules,system_info" why:"it steers cloud-init itself, which this image does not have"`
	_ struct{} `cloud:"locale_configfile" why:"the locale stands in /etc/locale.conf"`
	_ struct{} `cloud:"disable_root_opts" why:"root's keys are taken from it as long as disable_root is true"`
	_ struct{} `cloud:"ssh,ssh_publish_hostkeys,ssh_key_console_blacklist,ssh_fp_console_blacklist,no_ssh_fingerprints,authkey_hash" why:"the console always shows the fingerprints of all host keys"`
	_ struct{} `cloud:"merge_how,merge_type" why:"where several parts give one key, the last one counts"`

	Version string `cloud:"version"` // cloud-init's schema allows it; only v1 exists
}

// Keyboard is the console's layout.
type Keyboard struct {
	Layout  string `cloud:"layout"`
	Model   string `cloud:"model"`
	Variant string `cloud:"variant"`
	Options string `cloud:"options"`
}

// NTP says where the time comes from.
type NTP struct {
	Enabled *bool    `cloud:"enabled"`
	Servers []string `cloud:"servers"`
	Pools   []string `cloud:"pools"`
	Client  string   `cloud:"ntp_client"`

	_ struct{} `cloud:"peers,allow,config" why:"the image's client is systemd-timesyncd, which only asks servers"`
}

// ResolvConf sets the resolver for the whole node.
type ResolvConf struct {
	Nameservers   []string `cloud:"nameservers"`
	SearchDomains []string `cloud:"searchdomains"`
	Domain        string   `cloud:"domain"`

	_ struct{} `cloud:"sortlist,options" why:"systemd-resolved has no such setting"`
}

// CACerts are certificate authorities that the node trusts.
type CACerts struct {
	RemoveDefaults bool     `cloud:"remove_defaults,remove-defaults"`
	Trusted        []string `cloud:"trusted"`
}

// Chpasswd sets passwords.
type Chpasswd struct {
	Expire *bool        `cloud:"expire"` // true unless given
	Users  []Password   `cloud:"users"`
	List   PasswordList `cloud:"list"`
}

// Password is one user's password.
type Password struct {
	Name     string `cloud:"name"`
	Password string `cloud:"password"`
	Type     string `cloud:"type"` // hash (the default), text or RANDOM
}

// DiskSetup is the partition table of one disk.
type DiskSetup struct {
	TableType string `cloud:"table_type"` // mbr (the default) or gpt
	Layout    Layout `cloud:"layout"`
	Overwrite bool   `cloud:"overwrite"`
}

// FSSetup is one file system.
type FSSetup struct {
	Label      string `cloud:"label"`
	Filesystem string `cloud:"filesystem"`
	Device     string `cloud:"device"`
	Partition  string `cloud:"partition"` // auto, any, none or a number
	Overwrite  bool   `cloud:"overwrite"`
	ExtraOpts  Lines  `cloud:"extra_opts"`

	_ struct{} `cloud:"replace_fs" why:"a device with a file system is left alone unless overwrite is true"`
	_ struct{} `cloud:"cmd" why:"give filesystem and extra_opts, or use runcmd"`
}

// Swap is a swap file.
type Swap struct {
	Filename string `cloud:"filename"`
	Size     string `cloud:"size"`
	MaxSize  string `cloud:"maxsize"`
}

// Growpart is accepted: init grows the state partition at every boot.
type Growpart struct {
	Mode    Switch   `cloud:"mode"`
	Devices []string `cloud:"devices"`
	Ignore  bool     `cloud:"ignore_growroot_disabled"`
}

// WriteFile is one file to put in place.
type WriteFile struct {
	Path        string `cloud:"path"`
	Content     string `cloud:"content"`
	Owner       string `cloud:"owner"`
	Permissions *Mode  `cloud:"permissions"`
	Encoding    string `cloud:"encoding"`
	Append      bool   `cloud:"append"`
	Defer       bool   `cloud:"defer"`

	_ struct{} `cloud:"source" why:"a node fetches no files from the network; give content"`
}

// PowerState asks for a reboot or power-off once the node is configured.
type PowerState struct {
	Mode      string `cloud:"mode"`
	Delay     string `cloud:"delay"`
	Message   string `cloud:"message"`
	Condition Switch `cloud:"condition"`

	_ struct{} `cloud:"timeout" why:"the node waits for its own steps only, each of which has its own limit"`
}
