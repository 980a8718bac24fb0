# Installs a layer of packages from the flat repository in $REPO into the new folder $OUT.
# Runs on the host for the builder itself, in the builder for everything else.
mmdebstrap --mode=root --variant=essential --format=directory --architectures="$ARCHITECTURES" \
    --include="$PACKAGES" \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' --dpkgopt='path-exclude=/usr/share/bash-completion/*' \
    --skip=cleanup/apt/lists,check/signed-by,check/qemu \
    "$SUITE" "$OUT" "deb [trusted=yes] copy://$REPO ./"
